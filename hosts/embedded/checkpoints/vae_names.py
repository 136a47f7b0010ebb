"""VAE names: what ldm and TAESD's files call the parameters of diffusers' autoencoders."""

import re

_ENDS = {"conv_norm_out": "norm_out"}
_RESNET = {"conv_shortcut": "nin_shortcut"}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets\.(\d+)|(?:down|up)samplers\.0)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_TINY_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def ldm_vae_name(name: str, levels: int) -> str:
    """Give the ldm name, without prefix, of a parameter of ``AutoencoderKL``.

    Args:
        name: In diffusers, e.g. ``decoder.up_blocks.0.resnets.1.conv1.weight``.
        levels: Of the encoder; ldm counts those of the decoder from the picture.
    """
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    module, _, leaf = rest.rpartition(".")
    block, middle = _BLOCK.fullmatch(module), _MIDDLE.fullmatch(module)
    if block:
        direction, level, _, resnet, inner = block.groups()
        place = int(level) if direction == "down" else levels - 1 - int(level)
        if resnet is None:
            return f"{side}.{direction}.{place}.{direction}sample.{inner}.{leaf}"
        inner = _RESNET.get(inner, inner)
        return f"{side}.{direction}.{place}.block.{resnet}.{inner}.{leaf}"
    if middle:
        kind, number, inner = middle.groups()
        if kind == "attentions":
            return f"{side}.mid.attn_{int(number) + 1}.{_ATTENTION[inner]}.{leaf}"
        return f"{side}.mid.block_{int(number) + 1}.{_RESNET.get(inner, inner)}.{leaf}"
    return f"{side}.{_ENDS.get(module, module)}.{leaf}"


def tiny_vae_name(name: str) -> str:
    """Give the name, without prefix, that checkpoints have for a parameter of ``AutoencoderTiny``.

    The first layer of their decoder is the clamp, which diffusers has outside of its layers.
    """
    side, number, rest = _TINY_LAYER.fullmatch(name).groups()  # type: ignore[union-attr]
    return f"taesd_{side}.{int(number) + (side == 'decoder')}.{rest}"


def current_vae_name(name: str) -> str:
    """Give the name that diffusers has today for a parameter of a VAE saved before 2023."""
    owner, dot, rest = name.partition(".attentions.0.")
    module, _, leaf = rest.rpartition(".")
    return f"{owner}{dot}{_OLD_ATTENTION.get(module, module)}.{leaf}" if dot else name
