"""LoHa: two low-rank products, multiplied element by element."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .matrices import Hadamard, Product


@dataclass(frozen=True)
class LohaAdapter:
    """The update ``scale * (w1_a @ w1_b) * (w2_a @ w2_b)`` of one base weight.

    Shapes: ``w1_a`` and ``w2_a`` are ``(out, rank)``, ``w1_b`` and ``w2_b`` are
    ``(rank, in * kernel)``. With Tucker cores ``t1`` and ``t2`` ``(rank, rank, *kernel)`` they are
    ``(rank, out)`` and ``(rank, in)``. ``alpha`` is in the unit of rank; None means
    ``alpha = rank``.

    Source: arXiv:2108.06098, proposition 2 (3 for the cores); LyCORIS ``loha``, PEFT ``LoHa``.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float | None = None
    t1: Tensor | None = None
    t2: Tensor | None = None

    @property
    def rank(self) -> int:
        """Of each of the two products; the rank of the update may be its square."""
        return self.w1_b.shape[0]

    @property
    def scale(self) -> float:
        """``alpha / rank``; 1 when the file has no alpha or alpha 0, as LyCORIS reads it."""
        return self.alpha / self.rank if self.alpha else 1.0

    def tensors(self) -> tuple[Tensor, ...]:
        """``(w1_a, w1_b, w2_a, w2_b)``, then the cores if there are any."""
        cores = () if self.t1 is None or self.t2 is None else (self.t1, self.t2)
        return (self.w1_a, self.w1_b, self.w2_a, self.w2_b, *cores)

    def to(self, device: object) -> "LohaAdapter":
        """The same adapter with its tensors copied to ``device``."""
        move = [tensor.to(device=device, copy=True) for tensor in self.tensors()]  # type: ignore[call-overload]
        t1, t2 = move[4:] or (None, None)
        return replace(self, w1_a=move[0], w1_b=move[1], w2_a=move[2], w2_b=move[3], t1=t1, t2=t2)

    def matrix(self, shape: tuple[int, ...]) -> Hadamard:
        """The delta without scale; one core's product with ``in`` is made where there are cores."""
        return Hadamard(
            _product(self.w1_a, self.w1_b, self.t1), _product(self.w2_a, self.w2_b, self.t2)
        )

    def delta(self, base_weight: Tensor) -> Tensor:
        """The full update in float32, shape of ``base_weight``."""
        shape = tuple(base_weight.shape)
        return self.matrix(shape).scaled(self.scale).rows(slice(None)).reshape(shape)


def _product(outputs: Tensor, inputs: Tensor, core: Tensor | None) -> Product:
    if core is None:
        return Product(outputs.flatten(1).float(), inputs.flatten(1).float())
    # (r, s, *kernel) x (s, in) -> (r, in, *kernel)
    down = torch.einsum("rs...,si->ri...", core.float(), inputs.float())
    return Product(outputs.t().float(), down.flatten(1))
