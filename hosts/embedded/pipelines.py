"""LoRAs on a diffusers pipeline, for programs: merged for a block, or until they are un-merged."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ...lora_core.errors import LoraError
from ...lora_core.lora import load_lora
from ...lora_core.models.table import table_from_shapes
from ...lora_core.patching.ledger import MergeLedger
from ...lora_core.patching.rungs import UndoChoice
from ...lora_core.stack import StackItem, make_plan

_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

StackLike = Sequence[StackItem | tuple[str | Path, float] | str | Path]
"""Items, or files with a strength (1 when none is given) on UNet and text encoders alike."""


@contextmanager
def applied(
    pipe: Any, stack: StackLike, undo: UndoChoice = "auto", unmatched: str = "report"
) -> Iterator[Any]:
    """Merge a stack into a pipeline's weights for a ``with`` block; the base comes back after it.

    Args:
        pipe: A diffusers pipeline of SD1.5, SD2.x or SDXL; ``None`` components are passed over.
        stack: LoRAs in order; the order changes no bit.
        undo: How the base is kept; see ``Rungs``.
        unmatched: ``"error"`` refuses a file some of whose tensors match nothing.

    Returns:
        The pipeline.

    Raises:
        LoraError: a LoRA cannot be applied to this pipeline, or is merged by another library.
        UnusableModelError: the base could not be proved restored.
    """
    ledger = merge(pipe, stack, undo, unmatched)
    try:
        yield pipe
    finally:
        ledger.unmerge()


def merge(
    pipe: Any, stack: StackLike, undo: UndoChoice = "auto", unmatched: str = "report"
) -> MergeLedger:
    """Merge a stack into a pipeline's weights in place, on their own device.

    Args:
        pipe: See ``applied``.
        stack: See ``applied``.
        undo: See ``applied``.
        unmatched: See ``applied``.

    Returns:
        The ledger of this merge: ``unmerge()`` brings the base back bit for bit.

    Raises:
        LoraError: see ``applied``.
    """
    weights = pipeline_weights(pipe)
    table = table_from_shapes({name: tuple(weight.shape) for name, weight in weights.items()})
    plan = make_plan([_item(entry) for entry in stack], table, unmatched)
    ledger = MergeLedger(weights, undo)
    ledger.apply(plan)
    return ledger


def pipeline_weights(pipe: Any) -> Mapping[str, Tensor]:
    """The live parameters of a pipeline's UNet and text encoders, by pipeline names.

    Raises:
        LoraError: there are none, or PEFT has wrapped the modules, whose names LoRAs then miss.
    """
    weights = {
        f"{component}.{name}": parameter.data
        for component in _COMPONENTS
        if (module := getattr(pipe, component, None)) is not None
        for name, parameter in module.named_parameters()
    }
    wrapped = next((name for name in weights if ".base_layer." in name), None)
    if wrapped is not None:
        raise LoraError(
            "This pipeline carries LoRAs of diffusers or PEFT already.",
            {"First": wrapped},
            "call pipe.unload_lora_weights() first, and load all LoRAs here.",
        )
    if not weights:
        raise LoraError(
            "This pipeline has neither a UNet nor a text encoder.",
            {"Got": type(pipe).__name__, "Looked for": ", ".join(_COMPONENTS)},
            "use a Stable Diffusion 1.5, 2.x or SDXL pipeline.",
        )
    return weights


def _item(entry: StackItem | tuple[str | Path, float] | str | Path) -> StackItem:
    if isinstance(entry, StackItem):
        return entry
    path, strength = entry if isinstance(entry, tuple) else (entry, 1.0)
    return StackItem(load_lora(path), strength, strength)
