"""The configuration of a UNet, read from the shapes of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from ....lora_core.errors import LoraError
from .families import FAMILIES, unsupported
from .stated import UNET, choice, per_level, positive

Shapes = Mapping[str, tuple[int, ...]]

STATED = (
    *("family", "prediction", "norm_num_groups", "num_heads", "attention_head_dim"),
    *("block_out_channels", "layers_per_block", "cross_attention_dim"),
    *("in_channels", "out_channels", "use_linear_projection"),
)
PREDICTIONS = ("epsilon", "v_prediction")
FAMILY_OF_LABEL = {2816: "sdxl", 2560: "sdxl-refiner"}
_UNCLIP_LABELS = (1536, 2048)
_TIME_IDS = 256  # channels for each of SDXL's sizes, crops and scores
_HEADS_SD15, _HEAD_WIDTH, _GROUPS = 8, 64, 32
_GROUP_NORM = re.compile(r"conv_norm_out|.*\.resnets\.\d+\.norm[12]|.*\.attentions\.\d+\.norm")


def unet_family(name: str, shapes: Shapes, said: Mapping[str, Any]) -> str:
    """Name the family of a UNet: by its projections, and by the width of its label embedding.

    Args:
        name: Of the file, for messages.
        shapes: diffusers name to shape.
        said: What the header states.

    Raises:
        UnsupportedFormatError: SD2 unCLIP.
        LoraError: a label embedding of unknown width, and the header names no family.
    """
    if "family" in said:
        return choice(UNET, "family", said["family"], FAMILIES)
    label = shapes.get("add_embedding.linear_1.weight")
    if label is None:
        return "sd2" if _is_linear(shapes) else "sd15"
    width = label[-1]
    if width in _UNCLIP_LABELS:
        raise unsupported(name, "this is an SD2 unCLIP model", {"Label width": width})
    if width not in FAMILY_OF_LABEL:
        raise LoraError(
            f"{name}: the family of this UNet cannot be seen.",
            {"Label width": width, "Known": "2816 (sdxl), 2560 (sdxl-refiner)"},
            f'state it in the header: {UNET} = {{"family": "sdxl"}}.',
        )
    return FAMILY_OF_LABEL[width]


def unet_config(shapes: Shapes, family: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of ``UNet2DConditionModel``.

    Args:
        shapes: diffusers name to shape.
        family: Fixes heads and groups, which shapes do not show, unless the header states them.
        said: What the header states.

    Raises:
        LoraError: a tensor that shows a width is missing, the blocks are not arranged as in
            Stable Diffusion, or the stated heads and groups do not divide the widths.
    """
    config = _shown(shapes)
    widths = config["block_out_channels"]
    config["norm_num_groups"] = _groups(shapes, said)
    config["attention_head_dim"] = _heads(family, widths, said)  # diffusers means their count
    config["upcast_attention"] = family == "sd2"
    label = shapes.get("add_embedding.linear_1.weight")
    if label is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_IDS,
            "projection_class_embeddings_input_dim": label[-1],
        }
    return config


def _shown(shapes: Shapes) -> dict[str, Any]:
    """What the shapes show."""
    _shape(shapes, "down_blocks.0.resnets.0.conv1.weight")
    levels = _count(shapes, "down_blocks.")
    downs = [f"down_blocks.{level}" for level in range(levels)]
    ups = [f"up_blocks.{level}" for level in range(levels)]
    resnets = [_count(shapes, f"{block}.resnets.") for block in downs]
    down_depths = [_depths(shapes, block) for block in downs]
    up_depths = [_depths(shapes, block) for block in ups]
    middle = _depths(shapes, "mid_block")
    _require_arrangement(shapes, resnets, down_depths, up_depths, middle)
    # diffusers reads the middle's depth off the last level, which may have no attention itself.
    deepest = [*down_depths[:-1], down_depths[-1] or middle]
    return {
        "in_channels": _shape(shapes, "conv_in.weight")[1],
        "out_channels": _shape(shapes, "conv_out.weight")[0],
        "block_out_channels": tuple(
            _shape(shapes, f"{block}.resnets.0.conv1.weight")[0] for block in downs
        ),
        "layers_per_block": tuple(resnets),
        "time_embedding_dim": _shape(shapes, "time_embedding.linear_1.weight")[0],
        "cross_attention_dim": _context(shapes),
        "use_linear_projection": _is_linear(shapes),
        "down_block_types": tuple(
            "CrossAttnDownBlock2D" if depths else "DownBlock2D" for depths in down_depths
        ),
        "up_block_types": tuple(
            "CrossAttnUpBlock2D" if depths else "UpBlock2D" for depths in up_depths
        ),
        "transformer_layers_per_block": tuple(_one_or_all(depths) for depths in deepest),
        "reverse_transformer_layers_per_block": tuple(_one_or_all(depths) for depths in up_depths),
    }


def _require_arrangement(
    shapes: Shapes,
    resnets: list[int],
    down_depths: list[tuple[int, ...]],
    up_depths: list[tuple[int, ...]],
    middle: tuple[int, ...],
) -> None:
    """Check what diffusers' blocks cannot express."""
    mid_resnets = _count(shapes, "mid_block.resnets.")
    counts = [*resnets, *(count + 1 for count in reversed(resnets))]
    fits = (
        mid_resnets == 2
        and len(middle) == 1
        and all(
            len(depths) in (0, count)
            for depths, count in zip([*down_depths, *up_depths], counts, strict=True)
        )
        and (not down_depths[-1] or down_depths[-1][-1] == middle[0])
    )
    if not fits:
        raise LoraError(
            "The blocks of this UNet are not arranged as in Stable Diffusion.",
            {
                "Resnets by level": resnets,
                "Transformer blocks down, middle, up": f"{down_depths}, {middle}, {up_depths}",
                "Resnets in the middle": mid_resnets,
            },
            "if tensors are missing, get an intact copy; else run the graph with --comfyui.",
        )


def _groups(shapes: Shapes, said: Mapping[str, Any]) -> int:
    groups = positive(UNET, "norm_num_groups", said.get("norm_num_groups", _GROUPS))
    for key, shape in shapes.items():
        module, _, leaf = key.rpartition(".")
        if leaf == "weight" and _GROUP_NORM.fullmatch(module) and shape[0] % groups:
            raise _does_not_divide("norm_num_groups", groups, key, shape[0])
    return groups


def _heads(family: str, widths: tuple[int, ...], said: Mapping[str, Any]) -> tuple[int, ...]:
    """Heads by level: 8 in SD1; else one for 64 channels."""
    levels = len(widths)
    if "num_heads" in said:
        heads = per_level(UNET, "num_heads", said["num_heads"], levels)
    elif "attention_head_dim" in said or family != "sd15":
        value = said.get("attention_head_dim", _HEAD_WIDTH)
        sizes = per_level(UNET, "attention_head_dim", value, levels)
        for size, width in zip(sizes, widths, strict=True):
            if width % size:
                raise _does_not_divide("attention_head_dim", size, "a level", width)
        heads = tuple(width // size for size, width in zip(sizes, widths, strict=True))
    else:
        heads = (_HEADS_SD15,) * levels
    for count, width in zip(heads, widths, strict=True):
        if width % count:
            raise _does_not_divide("num_heads", count, "a level", width)
    return heads


def _does_not_divide(name: str, number: int, where: str, width: int) -> LoraError:
    return LoraError(
        "The channels of this UNet cannot be divided as they should be.",
        {"Width": f"{width} ({where})", name: number},
        f'state the right number in the header: {UNET} = {{"{name}": ...}}.',
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow a prefix, counted from 0 without a gap."""
    found = {key[len(prefix) :].partition(".")[0] for key in shapes if key.startswith(prefix)}
    count = 0
    while str(count) in found:
        count += 1
    return count


def _depths(shapes: Shapes, block: str) -> tuple[int, ...]:
    """Transformer blocks of each attention of a block."""
    return tuple(
        _count(shapes, f"{block}.attentions.{number}.transformer_blocks.")
        for number in range(_count(shapes, f"{block}.attentions."))
    )


def _one_or_all(depths: tuple[int, ...]) -> int | tuple[int, ...]:
    return depths if len(set(depths)) > 1 else max(depths, default=1)


def _context(shapes: Shapes) -> int:
    widths = {shape[1] for key, shape in shapes.items() if key.endswith(".attn2.to_k.weight")}
    if len(widths) != 1:
        raise LoraError(
            "The attention layers of this UNet do not agree on the width of the text.",
            {"Widths": sorted(widths) or "no attention at all"},
            "the checkpoint is damaged or mixes two models; get an intact copy.",
        )
    return widths.pop()


def _is_linear(shapes: Shapes) -> bool:
    return any(len(s) == 2 for key, s in shapes.items() if key.endswith(".proj_in.weight"))


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise LoraError(
            "The UNet of this checkpoint is not complete.",
            {"Missing (by its name in diffusers)": key},
            "download it again, or get it from another source.",
        )
    return shapes[key]
