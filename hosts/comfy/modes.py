"""How LoRAs go onto a MODEL and a CLIP: merged into the weights, or unmerged at run time."""

from dataclasses import dataclass
from typing import Any

from .model_kinds import ModelKind, model_kind, refuse_unsupported
from .repatch import passed_over_notes, repatch_text
from .runtime import runtime_notes

_TEXTS = {
    "merge": "ComfyUI patches, one fused adapter per weight",
    "runtime": "runtime, LoRAs added in each forward pass",
}
_QUANTISED_MERGE = (
    "the weights are quantised, and a merge rounds much of the LoRAs away (error of their effect "
    "on a layer 6 to 500 %, by format and strength); modes 'auto' and 'runtime' add them to the "
    "layers' outputs, unrounded."
)


@dataclass(frozen=True)
class Way:
    """How one patcher is treated.

    Attributes:
        label: What the patcher is to a user.
        kind: What is known of it.
        mode: ``"merge"`` or ``"runtime"``.
        repatch: What a merge's change of strength touches.
    """

    label: str
    kind: ModelKind
    mode: str
    repatch: str

    @property
    def text(self) -> str:
        """In a few words."""
        path = f"{_TEXTS[self.mode]} ({self.kind.name})"
        return f"{path}; {self.repatch}" if self.mode == "merge" else path

    def notes(self, patcher: Any) -> list[str]:
        """What a user should know of the clone that carries the LoRAs."""
        notes = [self.kind.note] if self.kind.note else []
        notes += passed_over_notes(patcher)
        if self.mode == "runtime":
            notes += runtime_notes(patcher)
        elif self.kind.is_quantised:
            notes.append(_QUANTISED_MERGE)
        return [f"{self.label}: {note}" for note in notes]


@dataclass(frozen=True)
class Ways:
    """How a MODEL and a CLIP are treated; None where there is none."""

    model: Way | None
    clip: Way | None

    @property
    def modes(self) -> tuple[str, str]:
        """For model and clip."""
        return (
            self.model.mode if self.model else "merge",
            self.clip.mode if self.clip else "merge",
        )

    @property
    def path(self) -> str:
        """How weights are changed, in one line."""
        ways = [way for way in (self.model, self.clip) if way is not None]
        if len({way.text for way in ways}) == 1:
            return ways[0].text
        return " · ".join(f"{way.label}: {way.text}" for way in ways)

    def notes(self, model: Any, clip: Any) -> tuple[str, ...]:
        """What a user should know of the clones that carry the LoRAs."""
        return (
            *(self.model.notes(model) if self.model else ()),
            *(self.clip.notes(clip.patcher) if self.clip else ()),
        )


def choose_ways(model: Any, clip: Any, mode: str) -> Ways:
    """How LoRAs go onto this model and text encoder.

    Args:
        model: MODEL, or None.
        clip: CLIP, or None.
        mode: ``"merge"``, ``"runtime"``, or ``"auto"``: for each of both, runtime where a merge
            would round the LoRAs away.

    Raises:
        LoraError: no LoRA can be applied to this kind of model.
    """
    return Ways(
        _choose_way("model", model, mode) if model is not None else None,
        _choose_way("text encoders", clip.patcher, mode) if clip is not None else None,
    )


def _choose_way(label: str, patcher: Any, mode: str) -> Way:
    refuse_unsupported(patcher)
    kind = model_kind(patcher)
    if mode == "auto":
        mode = "runtime" if kind.is_quantised else "merge"
    return Way(label, kind, mode, repatch_text(patcher, kind.may_reclass))
