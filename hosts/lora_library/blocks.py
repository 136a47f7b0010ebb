"""The blocks of a model that a weighting can name, from the header of the model's file."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...lora_core.errors import LoraError
from ...lora_core.files.safetensors_file import open_safetensors
from ...lora_core.models import ModelTable, table_from_shapes
from ...lora_core.models.target import Target
from ...lora_core.weighting import ModelBlocks, Weighting, blocks_of_model, factors_by_block
from .error_json import error_json

_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_TEXT_ENCODERS = ("text_encoders.", "cond_stage_model.", "conditioner.")
# A weight of each sort, for a model whose text encoders are in files of their own.
_ELSEWHERE = tuple(
    Target("", (), f"te{number}", f"text_model.encoder.layers.0.{module}.weight")
    for number in (1, 2, 3)
    for module in (
        *(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")),
        "mlp.fc1",
        "layer_norm1",
    )
)
_RENAMED = "single_transformer_blocks."  # diffusers' Flux: ComfyUI loads it under other names


@dataclass(frozen=True)
class KnownBlocks:
    """Blocks and where they come from.

    Attributes:
        blocks: None at all where they cannot be told.
        family: A name of ``BASES``, or None.
    """

    blocks: ModelBlocks
    family: str | None = None

    @classmethod
    def of_table(cls, table: ModelTable) -> "KnownBlocks":
        """Those of a model whose names are known."""
        return cls(blocks_of_model(table.targets), table.family)


NO_BLOCKS = KnownBlocks(ModelBlocks({}, {}))


def blocks_of_file(path: Path) -> KnownBlocks:
    """Read the blocks of a checkpoint or diffusion model, ``NO_BLOCKS`` where that is no use."""
    if path.suffix.lower() != ".safetensors":
        return NO_BLOCKS
    try:
        tensors = open_safetensors(path).tensors
    except LoraError:
        return NO_BLOCKS
    shapes = {name: info.shape for name, info in tensors.items()}
    try:
        return KnownBlocks.of_table(table_from_shapes(shapes))
    except LoraError:
        found = blocks_of_model(_targets(shapes))
        return KnownBlocks(found) if len(found.targets) > 1 else NO_BLOCKS


def _targets(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Target]:
    """Yield the weights of a model without a table, named as ComfyUI names them in memory."""
    if any(_RENAMED in name for name in shapes):
        return
    present = (p for p in _PREFIXES if any(name.startswith(p) for name in shapes))
    prefix = next(present, "")
    for name, shape in shapes.items():
        if not name.endswith((".weight", ".bias")):
            continue
        if name.startswith(_TEXT_ENCODERS):
            yield Target(name, shape, "te", name)
        elif name.startswith(prefix):
            yield Target(name, shape, "unet", name.removeprefix(prefix))


def blocks_json(blocks: ModelBlocks, text: str) -> dict[str, Any]:
    """Blocks, parts, and what a weighting does to each block.

    Args:
        blocks: Of the model.
        text: The weighting in any of its forms; a wrong one is told under ``problem``.
    """
    known = {
        "blocks": [{"name": name, "targets": len(t)} for name, t in blocks.targets.items()],
        "parts": [{"name": name, "targets": count} for name, count in blocks.parts.items()],
    }
    try:
        weighting = Weighting.parse(text)
    except LoraError as error:
        return {**known, "problem": error_json(error, ())}
    factors = factors_by_block(weighting, blocks)
    every = [target for targets in blocks.targets.values() for target in targets]
    if "te1" not in blocks.parts:
        every += _ELSEWHERE
    return {
        "blocks": [{**block, **asdict(factors[block["name"]])} for block in known["blocks"]],
        "parts": known["parts"],
        "text": weighting.to_text(),
        "unmatched": weighting.unmatched_rules(every) if blocks.targets else [],
        "problem": None,
    }
