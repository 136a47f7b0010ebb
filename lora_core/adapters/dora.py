"""DoRA: a low-rank change, then every row or every column brought to a trained norm."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import Additive

NORM_EPS = torch.finfo(torch.float32).eps
"""Added to every norm, as LyCORIS and ComfyUI do for float32 weights; PEFT adds nothing."""


@dataclass(frozen=True)
class DoraAdapter:
    """``W = magnitude * V / |V|`` with ``V = base_weight + change``.

    ``magnitude`` has one number per output channel (``axis`` 0) or input channel (``axis`` 1),
    with any dimensions of size 1 beside it; the norm is taken over all other dimensions of ``V``,
    in float32. Strength m gives ``base_weight + m * (W - base_weight)``. ``change`` is
    mostly a LoRA; LyCORIS trains magnitudes over LoHa and LoKr too.

    Source: arXiv:2402.09353, eq. 5; PEFT and LyCORIS since April 2025 write axis 0, older LyCORIS
    and OneTrainer axis 1.
    """

    change: Additive
    magnitude: Tensor
    axis: int

    @property
    def scale(self) -> float:
        """That of the change, which is scaled before the norm is taken."""
        return self.change.scale

    def tensors(self) -> tuple[Tensor, ...]:
        """Those of the change, then ``magnitude``."""
        return (*self.change.tensors(), self.magnitude)

    def to(self, device: object) -> "DoraAdapter":
        """The same adapter with its tensors copied to ``device``."""
        magnitude = self.magnitude.to(device=device, copy=True)  # type: ignore[call-overload]
        return replace(self, change=self.change.to(device), magnitude=magnitude)

    def delta(self, base_weight: Tensor) -> Tensor:
        """``W - base_weight`` in float32, shape of ``base_weight``."""
        base = base_weight.float()
        patched = base + self.change.delta(base)
        others = [dim for dim in range(base.dim()) if dim != self.axis]
        norm = torch.linalg.vector_norm(patched, dim=others, keepdim=True)
        gain: Tensor = self.magnitude.float().reshape(norm.shape) / (norm + NORM_EPS)
        return patched * gain - base


def magnitude_axis(
    shape: tuple[int, ...], outputs: int, inputs: int, may_be_inputs: bool
) -> int | None:
    """Which channels a stored magnitude belongs to: 0 outputs, 1 inputs, None neither.

    Args:
        shape: ``(out, 1, ..)``, ``(1, in, ..)`` or ``(n,)``; a flat one of a square weight counts
            outputs. PEFT stores ``(out,)`` and ``(1, out, 1, 1)``.
        outputs: Output channels of the weight.
        inputs: Input channels of the weight.
        may_be_inputs: False under names whose writers know axis 0 alone.
    """
    count = math.prod(shape)
    if max(shape, default=0) != count:  # more than one dimension is larger than 1
        return None
    if not may_be_inputs:
        return 0 if count == outputs else None
    first = shape[0]
    if first == count == outputs:
        return 0
    is_inputs = count == inputs and (len(shape) == 1 or shape[1] == count)
    return 1 if is_inputs else None
