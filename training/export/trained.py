"""What a run has learnt of one weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...lora_core.adapters import Adapter
from ...lora_core.errors import ShapeMismatchError
from ...lora_core.models.target import Target
from ..config import Form
from ..kinds import stored_dtype
from .balance import balanced_ranks, holds
from .errors import made_up_base, product_error, ratio


class Trained(Protocol):
    """What the exporter needs of any kind of factors."""

    @property
    def target(self) -> Target:
        """The weight."""

    @property
    def alpha(self) -> float:
        """What a file says beside the factors."""

    @property
    def roundings(self) -> int:
        """Tensors that a number of the delta is a product of, each rounded once in a file."""

    def stored(self, form: Form, dtype: str, alpha: float) -> dict[str, Tensor]:
        """The tensors of a file by suffix.

        Args:
            form: Of the file.
            dtype: A key of ``DTYPES``.
            alpha: Of the component; a kind whose alpha says more than a scale writes its own.
        """

    def error(self, adapter: Adapter) -> float:
        """Relative Frobenius error of what a reader made of the file."""

    def warnings(self, form: Form) -> tuple[str, ...]:
        """What programs make of such a file that a user may not expect."""


@dataclass(frozen=True, eq=False)
class TrainedModule:
    """The factors of LoRA or DoRA of one weight, as they are in the live model.

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
    roundings = 2

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

    def stored(self, form: Form, dtype: str, alpha: float) -> dict[str, Tensor]:
        """See ``Trained``; where alphas differ in kohya's form, ``up`` takes the difference."""
        up, down = self.saved
        is_kohya = form == "kohya"
        if is_kohya and self.alpha != alpha:
            up = (up.double() * (self.alpha / alpha)).float()
        if dtype == "fp16":
            up, down = balanced_ranks(up, down)
            dtype = "fp16" if holds(torch.float16, up, down) else "fp32"
        first, second = ("lora_down", "lora_up") if is_kohya else ("lora_A", "lora_B")
        found = {
            f"{first}.weight": down.to(stored_dtype("down", dtype)),
            f"{second}.weight": up.to(stored_dtype("up", dtype)),
        }
        if is_kohya:
            found["alpha"] = torch.tensor(alpha, dtype=torch.float32)
        if self.magnitude is not None:
            suffix, shape = _magnitude_place(form, len(self.target.shape))
            magnitude = self.magnitude.detach().cpu().to(stored_dtype("magnitude", dtype))
            found[suffix] = magnitude.reshape(shape).contiguous()
        return found

    def error(self, adapter: Adapter) -> float:
        """See ``Trained``; of DoRA also that of the merged weight, on a made-up base weight."""
        down, up, *others = adapter.tensors()
        error = product_error(up, down, adapter.scale, *self.live, self.scale)
        if self.magnitude is None:
            return math.inf if others else error
        magnitude = self.magnitude.detach().cpu().double().unsqueeze(1)
        up, down = self.live
        base = made_up_base(len(up), down.shape[1], magnitude)
        changed = base.double() + self.scale * up @ down
        merged = magnitude * changed / changed.norm(dim=1, keepdim=True)
        read = base.double() + adapter.delta(base.reshape(self.target.shape)).flatten(1).double()
        return max(error, ratio(float((read - merged).norm()), float(merged.norm())))

    def warnings(self, form: Form) -> tuple[str, ...]:
        """See ``Trained``."""
        return () if self.magnitude is None else _DORA_WARNINGS[form]


_DORA_WARNINGS: Mapping[Form, tuple[str, ...]] = {
    "kohya": (
        "DoRA: ComfyUI's own loader (0.30.0) divides by the norm of the base weight instead of the "
        "changed weight, so its pictures differ from the training's; our nodes do not",
        "DoRA: diffusers (0.42) drops the magnitudes of this form and applies a plain LoRA; for "
        "diffusers export in its own form",
    ),
    "diffusers": (),
    "peft": (),
}


def _magnitude_place(form: Form, dimensions: int) -> tuple[str, tuple[int, ...]]:
    """Name and shape of DoRA's magnitudes: LyCORIS' ``(out, 1, ...)``, or PEFT's own.

    PEFT saves them without ``.weight`` and reads both; transformers (5.23), into whose text
    encoders diffusers loads a file, reads only names with it.
    """
    if form == "kohya":
        return "dora_scale", (-1, *[1] * (dimensions - 1))
    shape = (-1,) if dimensions == 2 else (1, -1, *[1] * (dimensions - 2))
    return "lora_magnitude_vector.weight", shape


def _matrices(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(up, down)`` as float64 matrices on the CPU."""
    return up.detach().cpu().flatten(1).double(), down.detach().cpu().flatten(1).double()
