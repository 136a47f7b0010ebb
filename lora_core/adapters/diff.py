"""Full difference: the stored tensor is the delta."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from .matrices import Full


@dataclass(frozen=True)
class DiffAdapter:
    """The update ``scale * diff`` of one weight or bias.

    Used for ``diff``, ``diff_b``, ``w_norm``, ``b_norm`` (scale 1) and ``lora_B.bias`` (scale of
    its LoRA).

    Source: LyCORIS full and norm modules; PEFT ``lora_bias``.
    """

    diff: Tensor
    scale: float = 1.0

    def tensors(self) -> tuple[Tensor, ...]:
        """``(diff,)``."""
        return (self.diff,)

    def to(self, device: object) -> "DiffAdapter":
        """The same adapter with its tensor copied to ``device``."""
        return replace(self, diff=self.diff.to(device=device, copy=True))  # type: ignore[call-overload]

    def matrix(self, shape: tuple[int, ...]) -> Full:
        """The difference without scale.

        A diff with fewer input channels than the weight is padded with zeros.
        """
        diff = self.diff.float()
        if diff.numel() != math.prod(shape):
            padded = diff.new_zeros(shape)
            padded[:, : diff.shape[1]] = diff
            diff = padded
        return Full(diff.reshape(shape[0], -1))

    def delta(self, base_weight: Tensor) -> Tensor:
        """The full update in float32, shape of ``base_weight``."""
        shape = tuple(base_weight.shape)
        return self.scale * self.matrix(shape).values.reshape(shape)
