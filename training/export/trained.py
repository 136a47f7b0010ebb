"""What a run has learnt of one weight."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...lora_core.errors import ShapeMismatchError
from ...lora_core.models.target import Target


@dataclass(frozen=True, eq=False)
class TrainedModule:
    """The factors of one weight, as they are in the live model.

    Attributes:
        target: The weight.
        down: A, ``(rank, in, *kernel)``, float32.
        up: B, ``(out, rank)``, for convolutions with trailing ones, float32.
        scale: What multiplies ``up @ down``; rsLoRA and patterns are folded in.
        magnitude: DoRA's norm of each output row, ``(out,)``, or None.
        initial: ``(down, up)`` that were taken off the base when the run started (PiSSA,
            arXiv:2404.02948), shaped as ``down`` and ``up``; None when the base is unchanged.

    Raises:
        ShapeMismatchError: the factors make no delta of the target's shape.
    """

    target: Target
    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None
    initial: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        out, *inside = self.target.shape
        pairs = [(self.down, self.up), *([self.initial] if self.initial else [])]
        fits = all(
            list(down.shape[1:]) == inside
            and up.shape[:2] == (out, down.shape[0])
            and up.numel() == out * down.shape[0]
            for down, up in pairs
        )
        if not fits or (self.magnitude is not None and self.magnitude.shape != (out,)):
            shapes = {f"factor {at}": list(t.shape) for at, t in enumerate(sum(pairs, ()), 1)}
            if self.magnitude is not None:
                shapes["magnitude"] = list(self.magnitude.shape)
            raise ShapeMismatchError(
                f"{self.target.target_key}: the trained factors do not fit the weight.",
                {"weight": list(self.target.shape), **shapes},
                "give down (rank, in, *kernel), up (out, rank) and a magnitude (out,).",
            )

    @property
    def rank(self) -> int:
        """Rank of what a file holds."""
        return self.down.shape[0] + (self.initial[0].shape[0] if self.initial else 0)

    @property
    def alpha(self) -> float:
        """``scale * rank``, what a file says for these factors."""
        return self.scale * self.rank

    @property
    def live(self) -> tuple[Tensor, Tensor]:
        """``(up, down)`` of the delta on the unchanged base, float64, scale not included.

        Matrices ``(out, rank)`` and ``(rank, in * kernel)``; with ``initial`` of twice the rank.
        """
        up, down = _matrices(self.down, self.up)
        if self.initial is None:
            return up, down
        up0, down0 = _matrices(*self.initial)
        return torch.cat([up, -up0], 1), torch.cat([down, down0])

    @property
    def saved(self) -> tuple[Tensor, Tensor]:
        """``(up, down)`` as a file holds them, float32, shapes as ``up`` and ``down``.

        With ``initial``, ``B A - B0 A0`` is written ``(B - B0) A + B0 (A - A0)``: the two products
        of ``[B, -B0] [A; A0]`` are large and nearly equal, and rounding them to a half would lose
        the delta between them.
        """
        down, up = self.down.detach().cpu(), self.up.detach().cpu()
        if self.initial is not None:
            down0, up0 = (tensor.detach().cpu() for tensor in self.initial)
            up, down = torch.cat([up - up0, up0], 1), torch.cat([down, down - down0])
        return up.float().contiguous(), down.float().contiguous()


def _matrices(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(up, down)`` as float64 matrices on the CPU."""
    return up.detach().cpu().flatten(1).double(), down.detach().cpu().flatten(1).double()
