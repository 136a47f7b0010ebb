"""CLIP text encoder names: Hugging Face and open_clip naming, views of fused storages."""

import re
from collections.abc import Iterator, Mapping

from .target import Target

_OPEN_CLIP_OUTSIDE = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "text_projection.weight": "text_projection.weight",
}
_OPEN_CLIP_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPEN_CLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")
_HF_ROOTS = ("text_model.embeddings.", "text_model.encoder.layers.", "text_model.final_layer_norm.")


def hugging_face_targets(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, component: str
) -> Iterator[Target]:
    """List the weights of a text encoder stored with Hugging Face names.

    Args:
        shapes: Name -> shape of a state dict.
        prefix: What stands before ``text_model.`` (or before ``encoder.``) in the names.
        component: ``"te1"`` or ``"te2"``.

    Yields:
        One target per weight, in the order of ``shapes``; buffers are left out.
    """
    for key, shape in shapes.items():
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :]
        if not name.startswith(("text_model.", "text_projection.")):
            name = f"text_model.{name}"
        is_weight = name.startswith(_HF_ROOTS) and name.endswith((".weight", ".bias"))
        if is_weight or name == "text_projection.weight":
            yield Target(key, shape, component, name)


def open_clip_targets(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, component: str
) -> Iterator[Target]:
    """List the weights of a text encoder stored with open_clip names, as Hugging Face has them.

    The fused ``in_proj`` storages give three targets each: query, key and value rows. The raw
    parameter ``text_projection`` is used as ``x @ P``, so its target is ``transposed``.

    Args:
        shapes: Name -> shape of a state dict.
        prefix: What stands before ``transformer.resblocks.`` in the names.
        component: ``"te1"`` or ``"te2"``.

    Yields:
        One target per weight, in the order of ``shapes``; buffers are left out.
    """
    for key, shape in shapes.items():
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :]
        block = _OPEN_CLIP_BLOCK.fullmatch(name)
        if block:
            yield from _block_targets(key, shape, component, block)
        elif name == "text_projection":
            turned = tuple(reversed(shape))
            yield Target(key, turned, component, _OPEN_CLIP_OUTSIDE[name], transposed=True)
        elif name in _OPEN_CLIP_OUTSIDE:
            yield Target(key, shape, component, _OPEN_CLIP_OUTSIDE[name])


def _block_targets(
    key: str, shape: tuple[int, ...], component: str, block: re.Match[str]
) -> Iterator[Target]:
    layer, inner, leaf = block.groups()
    owner = f"text_model.encoder.layers.{layer}"
    if inner == "attn.in_proj":
        width = shape[0] // 3
        for part, projection in enumerate(("q_proj", "k_proj", "v_proj")):
            name = f"{owner}.self_attn.{projection}.{leaf}"
            rows = (part * width, (part + 1) * width)
            yield Target(key, (width, *shape[1:]), component, name, rows)
    elif inner in _OPEN_CLIP_INNER:
        yield Target(key, shape, component, f"{owner}.{_OPEN_CLIP_INNER[inner]}.{leaf}")
