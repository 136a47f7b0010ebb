"""The configuration of a VAE, read from the shapes of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from ....lora_core.errors import LoraError
from .stated import VAE, positive

Shapes = Mapping[str, tuple[int, ...]]

STATED = (
    *("norm_num_groups", "scaling_factor", "block_out_channels", "layers_per_block"),
    *("latent_channels", "in_channels", "out_channels"),
)
_GROUPS = 32
_PART = re.compile(r"(\d+)\.(weight|conv\.0\.weight)")


def kl_config(shapes: Shapes, said: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of ``AutoencoderKL``.

    Args:
        shapes: ldm name, without prefix, to shape.
        said: What the header states.

    Raises:
        LoraError: a tensor that shows a width is missing, or the groups do not divide the widths.
    """
    levels = _count(shapes, "encoder.down.{}.block.0.conv1.weight")
    widths = tuple(
        _shape(shapes, f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)
    )
    groups = positive(VAE, "norm_num_groups", said.get("norm_num_groups", _GROUPS))
    if not widths or any(width % groups for width in widths):
        raise LoraError(
            "The channels of this VAE cannot be divided into groups.",
            {"Widths": widths, "norm_num_groups": groups},
            f'state the right number in the header: {VAE} = {{"norm_num_groups": ...}}.',
        )
    return {
        "in_channels": _shape(shapes, "encoder.conv_in.weight")[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight")[0],
        "latent_channels": _shape(shapes, "decoder.conv_in.weight")[1],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, "encoder.down.0.block.{}.conv1.weight"),
        "norm_num_groups": groups,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
    }


def tiny_config(shapes: Shapes) -> dict[str, Any]:
    """Give the arguments of ``AutoencoderTiny``.

    Args:
        shapes: Name, without prefix, to shape: ``taesd_encoder.0.weight`` and so on.

    Raises:
        LoraError: a tensor that shows a width is missing.
    """
    encoder, decoder = _stages(shapes, "taesd_encoder."), _stages(shapes, "taesd_decoder.")
    first, last = "taesd_encoder.0.weight", f"taesd_encoder.{sum(encoder) + len(encoder)}.weight"
    width, in_channels = _shape(shapes, first)[:2]
    out = _shape(shapes, "taesd_decoder.1.weight")
    # Each convolution but the last begins a stage of the encoder; each but the first ends one of
    # the decoder.
    return {
        "in_channels": in_channels,
        "latent_channels": _shape(shapes, last)[0],
        "encoder_block_out_channels": (width,) * len(encoder),
        "decoder_block_out_channels": (out[0],) * len(decoder),
        "num_encoder_blocks": encoder,
        "num_decoder_blocks": decoder,
    }


def _stages(shapes: Shapes, prefix: str) -> tuple[int, ...]:
    """Residual blocks between one convolution and the next."""
    found = (_PART.fullmatch(key[len(prefix) :]) for key in shapes if key.startswith(prefix))
    parts = sorted((int(match[1]), match[2] == "weight") for match in found if match)
    blocks = [0]
    for _, is_convolution in parts[1:]:
        if is_convolution:
            blocks.append(0)
        else:
            blocks[-1] += 1
    return tuple(blocks[:-1])


def _count(shapes: Shapes, pattern: str) -> int:
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise LoraError(
            "The VAE of this checkpoint is not complete.",
            {"Missing": key},
            "download it again, or get it from another source.",
        )
    return shapes[key]
