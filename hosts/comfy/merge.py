"""Merge Into Model: a stack merged into a model, and what the receipt says of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from ...lora_core.errors import LoraError, UnknownChoiceError
from ...lora_core.patching.rungs import Rungs, UndoChoice
from ...lora_core.patching.undo import FileUndo
from ...lora_core.stack import Plan, StackItem, make_plan
from ..protocol import Merged
from .bake import baked, baked_clip
from .base_checkpoint import BaseCheckpoint, base_checkpoint
from .merge_on_device import OnDeviceMerge, mark_merged, pristine_weight
from .model_kinds import model_kind, refuse_unsupported
from .names import ComfyNames
from .patches import patched
from .repatch import passed_over_notes

_MODES = ("on_device", "bake")


def merged(
    model: Any,
    clip: Any,
    stack: Sequence[StackItem],
    names: ComfyNames,
    mode: str,
    undo: UndoChoice,
) -> Merged:
    """See ``Host.merge``."""
    if mode not in _MODES:
        raise UnknownChoiceError("merge mode", mode, _MODES)
    for patcher in _patchers(model, clip):
        refuse_unsupported(patcher)
    plan = make_plan(stack, names)
    new_model, new_clip = patched(model, clip, plan, stack, names)
    if mode == "bake":
        return _baked(new_model, new_clip, plan)
    checkpoint = base_checkpoint(_patchers(model, clip), plan)
    rungs = Rungs(undo, checkpoint.rows)
    counts: Counter[str] = Counter()
    for old, new in zip(_patchers(model, clip), _patchers(new_model, new_clip), strict=True):
        if new is not old:
            counts += mark_merged(old, new, undo, rungs)
            if undo == "file":
                _prove_file(new, plan, checkpoint)
    facts = {"weights": _weights_text(counts), "undo": _undo_text(undo, counts, checkpoint)}
    path = _path(model, counts)
    skipped = (passed_over_notes(patcher) for patcher in _patchers(new_model, new_clip))
    notes = (*_notes(model, clip), *chain.from_iterable(skipped))
    return Merged(new_model, new_clip, plan.bindings, path, notes, facts)


def _baked(model: Any, clip: Any, plan: Plan) -> Merged:
    """Everything that lies on both, incoming patches included, in weights of their own."""
    notes = _notes(model, clip)
    count = sum(len(patcher.patches) for patcher in _patchers(model, clip))
    new_model = baked(model) if model.patches else model
    new_clip = baked_clip(clip) if clip is not None and clip.patcher.patches else clip
    facts = {"weights": f"{count} baked, rounded once", "undo": "none: this is a base of its own"}
    return Merged(new_model, new_clip, plan.bindings, "baked", notes, facts)


def _patchers(model: Any, clip: Any) -> list[Any]:
    return [model] if clip is None else [model, clip.patcher]


def _prove_file(patcher: Any, plan: Plan, checkpoint: BaseCheckpoint) -> None:
    """Refuse the rung ``file`` before anything is sampled.

    Raises:
        LoraError: a weight that needs an undo record is not in the file with its bits.
    """
    if not isinstance(patcher, OnDeviceMerge):
        return
    for key in plan.terms.keys() & patcher.patches.keys():
        if patcher.why_ordinary(key) is not None:
            continue
        rows = checkpoint.rows.get(key)
        problem = checkpoint.problem or "it has no tensor for this weight"
        if rows is not None:
            problem = FileUndo(pristine_weight(patcher, key), rows).problem()
        if problem is not None:
            raise LoraError(
                "The undo rung 'file' is not available for this model.",
                {"Weight": key, "Checkpoint": problem},
                "use undo 'auto', which keeps a record where the file does not match.",
            )


def _path(model: Any, counts: Mapping[str, int]) -> str:
    name = model_kind(model).name
    if not counts:
        return f"nothing to merge ({name})"
    return f"in place on the device ({name})" if counts.get("") else f"ComfyUI patches ({name})"


def _weights_text(counts: Mapping[str, int]) -> str:
    in_place = f"{counts.get('', 0)} merged in place"
    ordinary = {reason: count for reason, count in counts.items() if reason}
    if not ordinary:
        return in_place
    reasons = ", ".join(f"{count}: {reason}" for reason, count in ordinary.items())
    return f"{in_place}, {sum(ordinary.values())} as ComfyUI does, with a full copy ({reasons})"


def _undo_text(undo: str, counts: Mapping[str, int], checkpoint: BaseCheckpoint) -> str:
    if not counts.get(""):
        return "ComfyUI's own"
    files = ", ".join(dict.fromkeys(rows.file.path.name for rows in checkpoint.rows.values()))
    if undo == "file":
        return f"file ({files}), proved"
    if undo == "auto":
        first = f"read again from {files} where it matches" if files else checkpoint.problem
        return f"auto ({first}; else a copy where it fits, else a residual)"
    return undo


def _notes(model: Any, clip: Any) -> tuple[str, ...]:
    notes = (model_kind(patcher).note for patcher in _patchers(model, clip))
    return tuple(dict.fromkeys(note for note in notes if note))
