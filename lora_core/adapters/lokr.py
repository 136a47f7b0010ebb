"""LoKr: the Kronecker product of a small and a larger matrix, each of them maybe of low rank."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .matrices import Kronecker

FACTORS = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
"""The tensors of a LoKr, by the names of ``LokrAdapter``'s fields, in their order."""


@dataclass(frozen=True)
class LokrAdapter:
    """The update ``scale * kron(w1, w2)`` of one base weight.

    ``w1`` is ``(o1, i1)`` or the product of ``w1_a`` ``(o1, rank)`` and ``w1_b`` ``(rank, i1)``;
    ``w2`` is ``(o2, i2, *kernel)`` or the product of ``w2_a`` ``(o2, rank)`` and ``w2_b``
    ``(rank, i2 * kernel)``; with a Tucker core ``t2`` ``(rank, rank, *kernel)`` these are
    ``(rank, o2)`` and ``(rank, i2)``. The weight is ``(o1 * o2, i1 * i2, *kernel)``.

    ``alpha`` is in the unit of rank. ``full_rank`` is what ``alpha`` counts in where both matrices
    are full; None there means scale 1, for the alpha of such a file says nothing.

    Source: arXiv:2212.10650; LyCORIS ``lokr``, PEFT ``LoKr`` (which alone scales two full ones).
    """

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None
    full_rank: int | None = None

    @property
    def rank(self) -> int | None:
        """Of ``w2``'s factors, else of ``w1``'s, else ``full_rank``."""
        for factor in (self.w2_b, self.w1_b):
            if factor is not None:
                return factor.shape[0]
        return self.full_rank

    @property
    def scale(self) -> float:
        """``alpha / rank``; 1 without a rank, and when the file has no alpha or alpha 0."""
        return self.alpha / self.rank if self.alpha and self.rank else 1.0

    @property
    def factors(self) -> dict[str, Tensor]:
        """The tensors that are there, by their names."""
        found = {name: getattr(self, name) for name in FACTORS}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def tensors(self) -> tuple[Tensor, ...]:
        """Those of ``factors``."""
        return tuple(self.factors.values())

    def to(self, device: object) -> "LokrAdapter":
        """The same adapter with its tensors copied to ``device``."""
        moved = {
            name: tensor.to(device=device, copy=True)  # type: ignore[call-overload]
            for name, tensor in self.factors.items()
        }
        return replace(self, **moved)

    def matrix(self, shape: tuple[int, ...]) -> Kronecker:
        """The delta without scale; the two matrices are made, their product is not."""
        return Kronecker(
            _matrix(self.w1, self.w1_a, self.w1_b, None),
            _matrix(self.w2, self.w2_a, self.w2_b, self.t2),
        )

    def delta(self, base_weight: Tensor) -> Tensor:
        """The full update in float32, shape of ``base_weight``."""
        shape = tuple(base_weight.shape)
        return self.matrix(shape).scaled(self.scale).rows(slice(None)).reshape(shape)


def _matrix(
    full: Tensor | None, left: Tensor | None, right: Tensor | None, core: Tensor | None
) -> Tensor:
    """One of the two matrices, ``(outputs, inputs * kernel)``, float32."""
    if full is not None:
        return full.float().flatten(1)
    assert left is not None
    assert right is not None
    if core is None:
        return torch.mm(left.float(), right.float().flatten(1))
    # (r, s, *kernel) x (s, in) -> (r, in, *kernel)
    inner = torch.einsum("rs...,si->ri...", core.float(), right.float())
    return torch.mm(left.t().float(), inner.flatten(1))
