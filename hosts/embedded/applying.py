"""LoRAs on handles: bound, merged, un-merged, baked."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ...lora_core.binding import Binding, bind
from ...lora_core.errors import LoraError, UnknownChoiceError
from ...lora_core.models.table import ModelTable, table_from_shapes
from ...lora_core.patching.rungs import UndoChoice
from ...lora_core.stack import StackItem
from ..protocol import Applied, Merged
from .handles import Change, Clip, Model

_MODES = ("auto", "merge", "runtime")
_MERGE_MODES = ("on_device", "bake")
_Handle = TypeVar("_Handle", Model, Clip)

# Baked bases keep the names of their files: a file proves itself, or another rung is taken.


def table_of(model: Model | None, clip: Clip | None) -> ModelTable:
    """What LoRA files call the modules of a model and its text encoders."""
    shapes = {**(model.base.shapes if model else {}), **(clip.base.shapes if clip else {})}
    return table_from_shapes(shapes)


def checked_bindings(
    stack: Sequence[StackItem], table: ModelTable, unmatched: str
) -> tuple[list[StackItem], tuple[Binding, ...]]:
    """The items with a strength other than 0, and what they address.

    Raises:
        LoraError: see ``Binding.check``.
    """
    active = [item for item in stack if item.strength_model or item.strength_clip]
    bindings = tuple(bind(item.lora, table) for item in active)
    for binding in bindings:
        binding.check(unmatched)
    return active, bindings


def applied(
    model: Model | None,
    clip: Clip | None,
    table: ModelTable,
    stack: Sequence[StackItem],
    unmatched: str,
    mode: str,
) -> Applied:
    """See ``Host.apply``."""
    if mode not in _MODES:
        raise UnknownChoiceError("mode", mode, _MODES)
    active, bindings = checked_bindings(stack, table, unmatched)
    changes = [Change(item, b, is_merge=False) for item, b in zip(active, bindings, strict=True)]
    notes = ("this host merges in every mode; the picture is that of 'runtime' to rounding",)
    return Applied(
        _carrying(model, changes),
        _carrying(clip, changes),
        bindings,
        "merged when a sampler or encoder needs it",
        notes if mode == "runtime" else (),
    )


def merged(
    model: Model,
    clip: Clip | None,
    table: ModelTable,
    stack: Sequence[StackItem],
    mode: str,
    undo: UndoChoice,
) -> Merged:
    """See ``Host.merge``."""
    if mode not in _MERGE_MODES:
        raise UnknownChoiceError("merge mode", mode, _MERGE_MODES)
    active, bindings = checked_bindings(stack, table, "report")
    changes = [Change(item, b, is_merge=True) for item, b in zip(active, bindings, strict=True)]
    new_model = replace(_carrying(model, changes), undo=undo)
    new_clip = clip and replace(_carrying(clip, changes), undo=undo)
    if mode == "bake":
        count = sum(len(_own(handle)) for handle in (new_model, new_clip) if handle)
        facts = {"weights": f"{count} baked, rounded once", "undo": "none: a base of its own"}
        baked_clip = new_clip and _baked_clip(new_clip)
        return Merged(_baked_model(new_model), baked_clip, bindings, "baked", (), facts)
    rungs = [
        f"{count} {rung}"
        for handle in (new_model, new_clip)
        if handle
        for rung, count in handle.carry().rungs().items()
    ]
    facts = {"weights": f"{_count(new_model, new_clip)} merged in place"}
    facts["undo"] = ", ".join(rungs) or "nothing to undo"
    return Merged(new_model, new_clip, bindings, "in place", (), facts)


def unmerged(model: Model, clip: Clip | None) -> Merged:
    """See ``Host.unmerge``."""
    taken = [c for handle in (model, clip) if handle for c in handle.changes if c.is_merge]
    if not taken:
        raise LoraError(
            "Nothing is merged into this model.",
            {"Looked for": "what Merge Into Model (on_device) puts on a MODEL and CLIP"},
            "connect the outputs of Merge Into Model; what was baked cannot be taken off.",
        )
    before = _count(model, clip)
    new_model, new_clip = _without_merges(model), clip and _without_merges(clip)
    names = ", ".join(dict.fromkeys(change.item.lora.name for change in taken))
    facts = {"weights": f"{before - _count(new_model, new_clip)} un-merged", "LoRAs": names}
    return Merged(new_model, new_clip, (), "the base comes back bit for bit", (), facts)


def _carrying(handle: Any, changes: Sequence[Change]) -> Any:
    return replace(handle, changes=(*handle.changes, *changes)) if handle and changes else handle


def _without_merges(handle: _Handle) -> _Handle:
    return replace(handle, changes=tuple(c for c in handle.changes if not c.is_merge))


def _own(handle: Model | Clip) -> dict[str, Any]:
    """The terms on this handle's own weights."""
    terms = handle.plan.terms
    return {name: terms[name] for name in terms if name in handle.base.weights}


def _count(model: Model, clip: Clip | None) -> int:
    return len(_own(model)) + (len(_own(clip)) if clip else 0)


def _baked_model(model: Model) -> Model:
    """A model of its own with the LoRAs in its weights."""
    part = model.loaded()
    return replace(Model.of(replace(part, unet=copy.deepcopy(part.unet))), baked=model.lineage)


def _baked_clip(clip: Clip) -> Clip:
    """Text encoders of their own with the LoRAs in their weights."""
    encoders = {name: copy.deepcopy(module) for name, module in clip.loaded().encoders.items()}
    baked = Clip.of(replace(clip.part, encoders=encoders))
    return replace(baked, baked=clip.lineage, skip=clip.skip)
