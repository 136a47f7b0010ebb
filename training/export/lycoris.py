"""What a run has learnt of one weight by LoHa, LoKr or OFT, in LyCORIS' names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...lora_core.adapters import Adapter
from ...lora_core.errors import UnsupportedFormatError
from ...lora_core.models.target import Target
from ..config import Form
from ..kinds import stored_dtype
from .balance import balanced, holds
from .errors import made_up_base, ratio

_PAIRS = (("hada_w2_a", "hada_w2_b"), ("lokr_w2_b", "lokr_w2_a"), ("lokr_w2", "lokr_w1"),
          ("lokr_w2", "lokr_w1_a"))  # fmt: skip
"""The factor that begins at 0, and one that it is multiplied by."""


@dataclass(frozen=True, eq=False)
class TrainedLycoris:
    """The factors of one weight, as they are in the live model; see ``Trained``.

    Attributes:
        target: The weight.
        factors: By LyCORIS' names: those of ``hada_``, of ``lokr_``, or ``oft_blocks`` and maybe
            ``rescale``; float32. A convolution's may be flattened from its inputs on.
        alpha: The scale is alpha / rank; of OFT it is the constraint.
    """

    target: Target
    factors: Mapping[str, Tensor]
    alpha: float

    @property
    def roundings(self) -> int:
        """See ``Trained``."""
        return len(self.factors)

    def stored(self, form: Form, dtype: str, alpha: float) -> dict[str, Tensor]:
        """See ``Trained``.

        Raises:
            UnsupportedFormatError: the form is not kohya's.
        """
        if form != "kohya":
            raise UnsupportedFormatError(
                f"The form {form!r} has no names for what was trained.",
                {"Weight": self.target.target_key, "Factors": ", ".join(self.factors)},
                'export in the form "kohya".',
            )
        found = {role: factor.detach().cpu().float() for role, factor in self.factors.items()}
        if dtype == "fp16":
            for zero, partner in _PAIRS:
                if zero in found and partner in found:
                    found[zero], found[partner] = balanced(found[zero], found[partner])
            dtype = "fp16" if holds(torch.float16, *found.values()) else "fp32"
        told = {
            role: factor.to(stored_dtype(role, dtype)).contiguous()
            for role, factor in found.items()
        }
        return told | {"alpha": torch.tensor(self.alpha, dtype=torch.float32)}

    def error(self, adapter: Adapter) -> float:
        """See ``Trained``; OFT's on a made-up base weight."""
        out, *inside = self.target.shape
        base = made_up_base(out, math.prod(inside), 1.0)
        live = self.delta(base)
        read = adapter.delta(base.reshape(self.target.shape)).flatten(1).double()
        return ratio(float((read - live).norm()), float(live.norm()))

    def delta(self, base: Tensor) -> Tensor:
        """What a weight ``(out, in * kernel)`` is changed by, float64.

        Source: arXiv:2108.06098, proposition 2; arXiv:2212.10650; arXiv:2306.07280. As LyCORIS
        has them.
        """
        own = {role: factor.detach().cpu().double() for role, factor in self.factors.items()}
        if "oft_blocks" in own:
            return _turned(base.double(), own, self.alpha)
        if "hada_w1_a" in own:
            first, second = (
                _product(own[f"hada_w{n}_a"], own[f"hada_w{n}_b"], own.get(f"hada_t{n}"))
                for n in (1, 2)
            )
            return self.alpha / own["hada_w1_b"].shape[0] * first * second
        return self._kronecker(own)

    def _kronecker(self, own: Mapping[str, Tensor]) -> Tensor:
        sides, rank = [], 0
        for name in ("lokr_w1", "lokr_w2"):
            side = own.get(name)
            if side is None:
                rank = own[f"{name}_b"].shape[0]
                side = _product(own[f"{name}_a"], own[f"{name}_b"])
            sides.append(side.flatten(1))
        return torch.kron(*sides) * (self.alpha / rank if rank else 1.0)

    def warnings(self, form: Form) -> tuple[str, ...]:
        """See ``Trained``."""
        is_oft = "oft_blocks" in self.factors
        told = {
            _NOT_DIFFUSERS.format(self._name): True,
            _STRENGTH: is_oft,
            _CONSTRAINT: is_oft and bool(self.alpha),
            _RESCALE: "rescale" in self.factors,
        }
        return tuple(text for text, is_true in told.items() if is_true)

    @property
    def _name(self) -> str:
        first = next(iter(self.factors)).partition("_")[0]
        return {"hada": "LoHa", "lokr": "LoKr"}.get(first, "OFT")


_NOT_DIFFUSERS = "{}: diffusers (0.42) refuses such files; ComfyUI and our nodes read them"
_STRENGTH = (
    "OFT: ComfyUI's own loader (0.30.0) takes the strength twice, so that 0.5 is a quarter; at 1 "
    "it does what was trained"
)
_CONSTRAINT = (
    "OFT: ComfyUI's own loader (0.30.0) bounds all turns by the constraint alone, not by the "
    "constraint times the outputs, so it turns less than was trained; our nodes do not"
)
_RESCALE = (
    "OFT: ComfyUI's own loader (0.30.0) leaves out the factors of the outputs (rescale); our nodes "
    "do not"
)


def _product(outputs: Tensor, inputs: Tensor, core: Tensor | None = None) -> Tensor:
    """``(out, columns)`` of ``(out, rank)`` and ``(rank, columns)``; with a core transposed."""
    if core is None:
        return outputs @ inputs.flatten(1)
    return torch.einsum("rs...,si,ro->oi...", core, inputs, outputs).flatten(1)


def _turned(base: Tensor, own: Mapping[str, Tensor], constraint: float) -> Tensor:
    """Blocks of rows turned by R^T, R = (I + Q) (I - Q)^-1, less the rows themselves."""
    blocks = own["oft_blocks"]
    skew = blocks - blocks.transpose(1, 2)
    bound = constraint * len(base)
    if bound:
        skew = skew * min(1.0, bound / (float(skew.norm()) + 1e-8))
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype)
    turns = 2 * torch.linalg.solve(identity - skew, skew)  # R - I
    rows = base.reshape(len(blocks), skew.shape[-1], -1)
    change = (turns.transpose(1, 2) @ rows).reshape(base.shape)
    if "rescale" in own:
        change = change + (own["rescale"].reshape(-1, 1) - 1) * (base + change)
    return change
