"""Inspect LoRA: what a file is, and what it does to a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..hosts import LoraChoice
from ..lora_core.binding import Binding, bind
from ..lora_core.family import known_tables, match_bases
from ..lora_core.lora import Lora
from ..lora_core.models import ModelTable
from ..lora_core.norms import block_norms
from ..lora_core.stack import StackItem
from .base import Node
from .lora_model import lora_of
from .lora_stack import StackEntry, read_stack
from .report import inspection_report

_UNIT = "norm of what is added, by block"


class LoraWorkbenchInspect(Node):
    """Reports on LoRAs without applying them."""

    DISPLAY_NAME = "Inspect LoRA"
    DESCRIPTION = (
        "Says what each LoRA is: kinds, ranks, alphas, base, metadata; and with a model connected "
        "how many tensors change a weight of it, and why the others do not."
    )
    SEARCH_ALIASES = ("lora info", "lora metadata", "lora keys")
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("report", "plots")
    OUTPUT_TOOLTIPS = (
        "The report as text.",
        "A chart per LoRA: how much it changes each block, the norm of all it adds there.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        return {
            "required": {},
            "optional": {
                "lora_model": ("LORA_MODEL", {"tooltip": "One LoRA."}),
                "lora_stack": ("LORA_STACK", {"tooltip": "Several LoRAs."}),
                "model": ("MODEL", {"tooltip": "The model to compare with."}),
                "clip": ("CLIP", {"tooltip": "The text encoders to compare with."}),
            },
        }

    def execute(
        self,
        lora_model: object = None,
        lora_stack: object = None,
        model: Any = None,
        clip: Any = None,
    ) -> dict[str, Any]:
        """Bind and describe; nothing is changed."""
        entries, _ = read_stack(lora_stack, lambda name: self.host.load_lora(LoraChoice(name)))
        if lora_model is not None:
            lora = lora_of(lora_model)
            entries.insert(0, StackEntry(lora.name, StackItem(lora)))
        bindings = self.host.bindings(model, clip, [entry.item for entry in entries])
        norms = _norms(entries, bindings)
        report = inspection_report(entries, bindings, norms, _UNIT)
        result = (report.to_text(), _plots(entries, norms))
        return {"ui": report.to_ui(), "result": result}


def _norms(entries: Sequence[StackEntry], bindings: Sequence[Binding]) -> list[dict[str, float]]:
    """Per LoRA, at its strengths: by the connected model's blocks, or its own base's."""
    bound = bindings or _own_bindings([entry.item.lora for entry in entries])
    return [block_norms(entry.item, b) for entry, b in zip(entries, bound, strict=True)]


def _plots(entries: Sequence[StackEntry], norms: Sequence[Mapping[str, float]]) -> Tensor:
    """A chart per LoRA."""
    from .charts import bar_charts  # Pillow: not for commands that draw nothing

    if not entries:
        return bar_charts(["No LoRA is connected"], [{}], _UNIT)
    return bar_charts([entry[0] for entry in entries], norms, _UNIT)


def _own_bindings(loras: Sequence[Lora]) -> list[Binding]:
    """Each LoRA seen from the base that it fits best, as far as it fits one that we know."""
    tables, nothing = known_tables(), ModelTable(None, (), {})
    best = ((lora, match_bases(lora, tables)) for lora in loras)
    return [bind(lora, tables[found[0].base] if found else nothing) for lora, found in best]
