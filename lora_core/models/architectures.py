"""The known bases, described in a few numbers, and the names and shapes that follow from them."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import UnknownChoiceError, UnsupportedFormatError
from .unet import diffusers_modules_of_ldm

Shapes = dict[str, tuple[int, ...]]
Named = tuple[str, tuple[int, ...]]

_VOCABULARY, _POSITIONS = 49408, 77
_LATER = frozenset({"sd3", "flux"})


@dataclass(frozen=True, slots=True)
class _UNet:
    """One UNet; ``depths`` are transformer blocks per attention, one number per level."""

    channels: int
    multipliers: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    context: int
    linear_projections: bool
    label_width: int | None = None
    in_channels: int = 4
    resnets: int = 2


@dataclass(frozen=True, slots=True)
class _TextEncoder:
    """One CLIP text encoder: ComfyUI's name for it, its place in a checkpoint, its size."""

    comfy: str
    checkpoint_prefix: str
    width: int
    layers: int
    is_open_clip: bool


@dataclass(frozen=True, slots=True)
class _Base:
    unet: _UNet
    text_encoders: tuple[_TextEncoder, ...]


_CLIP_L, _CLIP_H, _CLIP_G = ("clip_l", 768, 12), ("clip_h", 1024, 24), ("clip_g", 1280, 32)


def _text_encoder(size: tuple[str, int, int], prefix: str) -> _TextEncoder:
    comfy, width, layers = size
    return _TextEncoder(comfy, prefix, width, layers, is_open_clip=comfy != "clip_l")


def _sd15(in_channels: int) -> _Base:
    unet = _UNet(320, (1, 2, 4, 4), (1, 1, 1, 0), 1, 768, False, None, in_channels)
    return _Base(unet, (_text_encoder(_CLIP_L, "cond_stage_model.transformer."),))


def _sd21(in_channels: int) -> _Base:
    unet = _UNet(320, (1, 2, 4, 4), (1, 1, 1, 0), 1, 1024, True, None, in_channels)
    return _Base(unet, (_text_encoder(_CLIP_H, "cond_stage_model.model."),))


def _sdxl(in_channels: int) -> _Base:
    unet = _UNet(320, (1, 2, 4), (0, 2, 10), 10, 2048, True, 2816, in_channels)
    first = _text_encoder(_CLIP_L, "conditioner.embedders.0.transformer.")
    return _Base(unet, (first, _text_encoder(_CLIP_G, "conditioner.embedders.1.model.")))


def _sdxl_refiner() -> _Base:
    unet = _UNet(384, (1, 2, 4, 4), (0, 4, 4, 0), 4, 1280, True, 2560)
    return _Base(unet, (_text_encoder(_CLIP_G, "conditioner.embedders.0.model."),))


_BASES = {
    "sd15": _sd15(4),
    "sd15-inpaint": _sd15(9),
    "sd21": _sd21(4),
    "sd21-inpaint": _sd21(9),
    "sdxl": _sdxl(4),
    "sdxl-inpaint": _sdxl(9),
    "sdxl-refiner": _sdxl_refiner(),
}
BASES = tuple(_BASES)


def checkpoint_shapes(base: str) -> Shapes:
    """Give names and shapes of a base's UNet and text encoders, as its checkpoint file has them.

    Args:
        base: A name of ``BASES``.

    Returns:
        Name -> shape. The VAE, buffers and ``logit_scale`` are left out.

    Raises:
        UnknownChoiceError: No base of this name.
        UnsupportedFormatError: The base is known but comes in a later version.
    """
    described = _described(base)
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in _unet(described.unet)}
    for encoder in described.text_encoders:
        named = _open_clip(encoder) if encoder.is_open_clip else _hugging_face(encoder)
        shapes |= {encoder.checkpoint_prefix + name: shape for name, shape in named}
    return shapes


def comfy_shapes(base: str) -> Shapes:
    """Give names and shapes of a base in ComfyUI's memory: ``diffusion_model.`` and ``clip_*``.

    Args:
        base: A name of ``BASES``.

    Returns:
        Name -> shape, both of ComfyUI's state dicts in one; ``logit_scale`` is left out.

    Raises:
        UnknownChoiceError: No base of this name.
        UnsupportedFormatError: The base is known but comes in a later version.
    """
    described = _described(base)
    shapes = {f"diffusion_model.{name}": shape for name, shape in _unet(described.unet)}
    for encoder in described.text_encoders:
        prefix = f"{encoder.comfy}.transformer."
        shapes |= {prefix + name: shape for name, shape in _hugging_face(encoder)}
        shapes[f"{prefix}text_projection.weight"] = (encoder.width, encoder.width)
    return shapes


def diffusers_unet_shapes(base: str) -> Shapes:
    """Give names and shapes of a base's UNet as diffusers' ``UNet2DConditionModel`` has them.

    Args:
        base: A name of ``BASES``.

    Returns:
        Name -> shape, without prefix.

    Raises:
        UnknownChoiceError: No base of this name.
        UnsupportedFormatError: The base is known but comes in a later version.
    """
    ldm = dict(_unet(_described(base).unet))
    theirs = diffusers_modules_of_ldm(dict.fromkeys(name.rpartition(".")[0] for name in ldm))
    parts = ((name.rpartition("."), shape) for name, shape in ldm.items())
    return {f"{theirs[module]}.{leaf}": shape for (module, _, leaf), shape in parts}


def _described(base: str) -> _Base:
    if base in _LATER:
        raise UnsupportedFormatError(
            f"The base {base!r} is not supported yet.",
            {"Supported": ", ".join(BASES)},
            "use a later version of LoRA Workbench, or apply the LoRA inside ComfyUI.",
        )
    if base not in _BASES:
        raise UnknownChoiceError("base", base, BASES)
    return _BASES[base]


def _with_bias(name: str, shape: tuple[int, ...]) -> Iterator[Named]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _norm(name: str, width: int) -> Iterator[Named]:
    return _with_bias(name, (width,))


def _conv(name: str, width_in: int, width_out: int, kernel: int = 3) -> Iterator[Named]:
    return _with_bias(name, (width_out, width_in, kernel, kernel))


def _linear(name: str, width_in: int, width_out: int) -> Iterator[Named]:
    return _with_bias(name, (width_out, width_in))


def _unet(unet: _UNet) -> Iterator[Named]:
    first, embedding = unet.channels, 4 * unet.channels
    yield from _linear("time_embed.0", first, embedding)
    yield from _linear("time_embed.2", embedding, embedding)
    if unet.label_width is not None:
        yield from _linear("label_emb.0.0", unet.label_width, embedding)
        yield from _linear("label_emb.0.2", embedding, embedding)
    skips = [first]
    yield from _conv("input_blocks.0.0", unet.in_channels, first)
    yield from _input_blocks(unet, skips)
    last = skips[-1]
    yield from _resnet("middle_block.0", last, last, embedding)
    yield from _transformer("middle_block.1", unet, last, unet.middle_depth)
    yield from _resnet("middle_block.2", last, last, embedding)
    yield from _output_blocks(unet, skips)
    yield from _norm("out.0", first)
    yield from _conv("out.2", first, 4)


def _input_blocks(unet: _UNet, skips: list[int]) -> Iterator[Named]:
    """Yield the downward blocks and append the width of each block's output to ``skips``."""
    for level, multiplier in enumerate(unet.multipliers):
        width = multiplier * unet.channels
        for _ in range(unet.resnets):
            block = f"input_blocks.{len(skips)}"
            yield from _resnet(f"{block}.0", skips[-1], width, 4 * unet.channels)
            yield from _transformer(f"{block}.1", unet, width, unet.depths[level])
            skips.append(width)
        if level < len(unet.multipliers) - 1:
            yield from _conv(f"input_blocks.{len(skips)}.0.op", width, width)
            skips.append(width)


def _output_blocks(unet: _UNet, skips: list[int]) -> Iterator[Named]:
    """Yield the upward blocks; each takes the last width off ``skips``."""
    width_in, number = skips[-1], 0
    for level in reversed(range(len(unet.multipliers))):
        width, depth = unet.multipliers[level] * unet.channels, unet.depths[level]
        for resnet in range(unet.resnets + 1):
            block = f"output_blocks.{number}"
            yield from _resnet(f"{block}.0", width_in + skips.pop(), width, 4 * unet.channels)
            yield from _transformer(f"{block}.1", unet, width, depth)
            if level and resnet == unet.resnets:
                yield from _conv(f"{block}.{2 if depth else 1}.conv", width, width)
            width_in, number = width, number + 1


def _resnet(block: str, width_in: int, width_out: int, embedding: int) -> Iterator[Named]:
    yield from _norm(f"{block}.in_layers.0", width_in)
    yield from _conv(f"{block}.in_layers.2", width_in, width_out)
    yield from _linear(f"{block}.emb_layers.1", embedding, width_out)
    yield from _norm(f"{block}.out_layers.0", width_out)
    yield from _conv(f"{block}.out_layers.3", width_out, width_out)
    if width_in != width_out:
        yield from _conv(f"{block}.skip_connection", width_in, width_out, kernel=1)


def _transformer(block: str, unet: _UNet, width: int, depth: int) -> Iterator[Named]:
    if not depth:
        return
    projection = (width, width) if unet.linear_projections else (width, width, 1, 1)
    yield from _norm(f"{block}.norm", width)
    yield from _with_bias(f"{block}.proj_in", projection)
    for number in range(depth):
        inner = f"{block}.transformer_blocks.{number}"
        for attention, source in (("attn1", width), ("attn2", unet.context)):
            yield f"{inner}.{attention}.to_q.weight", (width, width)
            yield f"{inner}.{attention}.to_k.weight", (width, source)
            yield f"{inner}.{attention}.to_v.weight", (width, source)
            yield from _linear(f"{inner}.{attention}.to_out.0", width, width)
        yield from _linear(f"{inner}.ff.net.0.proj", width, 8 * width)
        yield from _linear(f"{inner}.ff.net.2", 4 * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{inner}.{norm}", width)
    yield from _with_bias(f"{block}.proj_out", projection)


def _hugging_face(encoder: _TextEncoder) -> Iterator[Named]:
    width = encoder.width
    yield "text_model.embeddings.token_embedding.weight", (_VOCABULARY, width)
    yield "text_model.embeddings.position_embedding.weight", (_POSITIONS, width)
    for number in range(encoder.layers):
        layer = f"text_model.encoder.layers.{number}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{projection}", width, width)
        yield from _norm(f"{layer}.layer_norm1", width)
        yield from _linear(f"{layer}.mlp.fc1", width, 4 * width)
        yield from _linear(f"{layer}.mlp.fc2", 4 * width, width)
        yield from _norm(f"{layer}.layer_norm2", width)
    yield from _norm("text_model.final_layer_norm", width)


def _open_clip(encoder: _TextEncoder) -> Iterator[Named]:
    width = encoder.width
    yield "token_embedding.weight", (_VOCABULARY, width)
    yield "positional_embedding", (_POSITIONS, width)
    yield "text_projection", (width, width)
    for number in range(encoder.layers):
        layer = f"transformer.resblocks.{number}"
        yield f"{layer}.attn.in_proj_weight", (3 * width, width)
        yield f"{layer}.attn.in_proj_bias", (3 * width,)
        yield from _linear(f"{layer}.attn.out_proj", width, width)
        yield from _norm(f"{layer}.ln_1", width)
        yield from _linear(f"{layer}.mlp.c_fc", width, 4 * width)
        yield from _linear(f"{layer}.mlp.c_proj", 4 * width, width)
        yield from _norm(f"{layer}.ln_2", width)
    yield from _norm("ln_final", width)
