"""Suffix grammar: a tensor's name is a module key plus a suffix that gives its role."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

BFL_CONTROL = "bfl-control"
"""Black Forest Labs' LoRAs that make Flux take a control picture: plain names, own q/k norms."""


class Role(NamedTuple):
    """What one tensor is to its module.

    ``kind`` names the adapter family that uses the role; roles of kind ``shared`` occur in several.
    ``format`` is the naming scheme that writes this suffix, "" where several do.
    """

    kind: str
    name: str
    format: str


_LORA = {
    "kohya": {"lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid"},
    "diffusers": {
        "lora.down.weight": "down",
        "lora.up.weight": "up",
        "lora_linear_layer.down.weight": "down",
        "lora_linear_layer.up.weight": "up",
    },
    "peft": {
        "lora_A.weight": "down",
        "lora_B.weight": "up",
        "lora_A": "down",
        "lora_B": "up",
        "lora_B.bias": "up_bias",
    },
}
_SHARED = {
    "alpha": "alpha",
    "scale": "scale_override",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "magnitude": "magnitude",
    "reshape_weight": "reshape_weight",
}
_OTHERS = {
    "diff": ("diff", "diff_b"),
    "norm": ("w_norm", "b_norm"),
    "set": ("set_weight",),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": (
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
        *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2"),
    ),
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    "oft": ("oft_blocks", "rescale"),
    "oft_diag": ("oft_diag",),
    "peft-oft": ("oft_R.weight", "oft_R.scaled_oft"),
    "peft-boft": ("boft_R", "boft_s"),
    "ia3": ("ia3_l", "on_input"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
    "tlora": ("q_layer.weight", "p_layer.weight", "lambda_layer"),
    "sparse_bias": ("bias_indices", "bias_values", "bias_size"),
}

_SCHEMES = {"loha": "lycoris", "lokr": "lycoris", "oft": "lycoris"}
"""PEFT took LyCORIS' names of the first two."""

SUFFIXES: Mapping[str, Role] = MappingProxyType(
    {
        suffix: Role("lora", role, scheme)
        for scheme, suffixes in _LORA.items()
        for suffix, role in suffixes.items()
    }
    | {suffix: Role("shared", role, "") for suffix, role in _SHARED.items()}
    | {
        suffix: Role(kind, suffix, _SCHEMES.get(kind, kind))
        for kind, names in _OTHERS.items()
        for suffix in names
    }
)
"""Dotted suffix -> role, as kohya, LyCORIS, diffusers, PEFT and ComfyUI write them."""

_PEFT_ADAPTER = re.compile(
    r"\.(lora_A|lora_B|lora_magnitude_vector|lora_embedding_A|lora_embedding_B"
    r"|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"
    r"\.([^.]+)(\.weight|\.bias)?$"
)
_OLD_DIFFUSERS = re.compile(r"^(.+)_lora\.(down|up)\.weight$")
_XLABS = re.compile(r"^((?:double|single)_blocks\.\d+\.processor\..+)\.(down|up)\.weight$")
_FLATTENED = re.compile(r"^(.+)_lora_(down|up|mid)\.weight$")
_NAMELESS = re.compile(r"^(unet|text_encoder):\d+:(up|down)$")
_REPLACED_NORM = "_norm.scale"
_EMBEDDING = re.compile(r"^(<.+>|bundle_emb\..+)$")


def split_key(key: str) -> tuple[str, Role] | None:
    """Split a tensor's name into its module key and its role.

    Returns None when no suffix of the grammar ends the name.
    """
    if key.endswith(_REPLACED_NORM):
        return key.removesuffix(".scale"), Role("set", "set_weight", BFL_CONTROL)
    parts = key.rsplit(".", 3)
    for count in range(len(parts) - 1, 0, -1):
        suffix = ".".join(parts[-count:])
        role = SUFFIXES.get(suffix)
        if role is not None:
            return key[: -len(suffix) - 1], role
    return _split_irregular(key)


def _split_irregular(key: str) -> tuple[str, Role] | None:
    if match := _PEFT_ADAPTER.search(key):
        suffix = match[1] + (match[3] or "")
        role = SUFFIXES.get(suffix) or SUFFIXES.get(match[1])
        return (key[: match.start()], role) if role else None
    if match := _XLABS.match(key):
        return match[1], Role("lora", match[2], "xlabs")
    if match := _OLD_DIFFUSERS.match(key):
        return match[1], Role("lora", match[2], "diffusers-attn-processor")
    if match := _FLATTENED.match(key):
        return match[1], Role("lora", match[2], "kohya")
    if match := _NAMELESS.match(key):
        return key.rpartition(":")[0], Role("nameless", match[2], "cloneofsimo")
    if _EMBEDDING.match(key):
        return key, Role("embedding_vectors", "vectors", "")
    return None
