"""LoRA and LoCon: a product of two thin factors, with an optional Tucker core."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import ThinFactors
from .matrices import Product


@dataclass(frozen=True)
class LoraAdapter:
    """The update ``scale * up @ down`` of one base weight.

    Shapes: ``down`` is ``(rank, in, *kernel)``, ``up`` is ``(out, rank)`` with optional trailing
    ones; the paper calls them A and B. With a Tucker core ``mid`` ``(rank, rank, *kernel)`` the
    factors have 1x1 kernels. ``alpha`` is in the unit of rank; None means ``alpha = rank``.

    Source: arXiv:2106.09685, eq. 3; LyCORIS LoCon for convolutions and the Tucker form.
    """

    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Rows of ``down``; the header's ``ss_network_dim`` is wrong for mixed-rank files."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """``alpha / rank``; 1 when the file has no alpha or alpha 0.

        kohya and LyCORIS read alpha 0 as ``alpha = rank``; ComfyUI multiplies by 0.
        """
        return self.alpha / self.rank if self.alpha else 1.0

    def tensors(self) -> tuple[Tensor, ...]:
        """``(down, up)`` or ``(down, up, mid)``."""
        return (self.down, self.up) if self.mid is None else (self.down, self.up, self.mid)

    def to(self, device: object) -> "LoraAdapter":
        """The same adapter with its tensors copied to ``device``."""
        move = [tensor.to(device=device, copy=True) for tensor in self.tensors()]  # type: ignore[call-overload]
        return replace(self, down=move[0], up=move[1], mid=move[2] if len(move) > 2 else None)

    def thin(self, shape: tuple[int, ...]) -> ThinFactors:
        """Float32 factors of the delta of a weight of ``shape``.

        Linear and 1x1-convolution factors are interchangeable: both are flattened. A ``down``
        with fewer input channels than the weight (a plain LoRA on an inpainting model's first
        convolution) is padded with zeros.
        """
        up = self.up.flatten(1).float()  # (out, rank)
        down = self.down.float()
        if self.mid is not None:
            # Tucker: fold the core into down, (r, r, *k) x (r, in) -> (r, in, *k)
            down = torch.einsum("mn...,ni->mi...", self.mid.float(), down.flatten(1))
        if len(shape) > 1 and down.dim() == len(shape) and down.shape[1] < shape[1]:
            padded = down.new_zeros(down.shape[0], *shape[1:])
            padded[:, : down.shape[1]] = down
            down = padded
        return ThinFactors(up, down.flatten(1))

    def matrix(self, shape: tuple[int, ...]) -> Product:
        """The product without scale."""
        return Product(*self.thin(shape))

    def delta(self, base_weight: Tensor) -> Tensor:
        """The full update in float32, shape of ``base_weight``."""
        up, down = self.thin(tuple(base_weight.shape))
        return (self.scale * (up @ down)).reshape(base_weight.shape)
