"""The configuration of a CLIP text encoder, read from the shapes of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from ....lora_core.errors import LoraError
from ..parts import EncoderName
from .stated import choice, positive

STATED = (
    *("hidden_act", "num_heads", "num_attention_heads", "layers", "num_hidden_layers"),
    *("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"),
    *("projection_dim", "bos_token_id", "eos_token_id"),
)
_ACTIVATIONS: Mapping[EncoderName, str] = {"l": "quick_gelu", "h": "gelu", "g": "gelu"}
_HEAD_WIDTH = 64
_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")
_EMBEDDINGS = "text_model.embeddings"


def canonical(name: str) -> str:
    """A parameter's name as files have it: with ``text_model.``, which transformers 5 left out."""
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def text_config(
    encoder: EncoderName,
    shapes: Mapping[str, tuple[int, ...]],
    entry: str,
    said: Mapping[str, Any],
) -> dict[str, Any]:
    """Give the arguments of ``CLIPTextConfig``.

    Args:
        encoder: Fixes the activation.
        shapes: Canonical name to shape.
        entry: Name of the header's entry, for messages.
        said: What that entry states.

    Raises:
        LoraError: a tensor that shows a width is missing, or heads do not divide the width.
    """
    vocabulary, width = _shape(shapes, f"{_EMBEDDINGS}.token_embedding.weight")
    projection = shapes.get("text_projection.weight", (width, width))
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": _shape(shapes, f"{_EMBEDDINGS}.position_embedding.weight")[0],
        "num_hidden_layers": 1
        + max((int(m[1]) for m in map(_LAYER.match, shapes) if m), default=0),
        "intermediate_size": _shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "projection_dim": projection[0],
    }
    activation = said.get("hidden_act", _ACTIVATIONS[encoder])
    return config | {
        "hidden_act": choice(entry, "hidden_act", activation, set(_ACTIVATIONS.values())),
        "num_attention_heads": _heads(width, entry, said),
        # CLIP's own marks are the last two of its vocabulary.
        "bos_token_id": said.get("bos_token_id", vocabulary - 2),
        "eos_token_id": said.get("eos_token_id", vocabulary - 1),
    }


def shown_by_shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a header may repeat, under every name it may use."""
    return {**config, "layers": config["num_hidden_layers"], "num_heads": config[_HEADS]}


_HEADS = "num_attention_heads"


def _heads(width: int, entry: str, said: Mapping[str, Any]) -> int:
    stated = said.get(_HEADS, said.get("num_heads"))
    heads = max(width // _HEAD_WIDTH, 1) if stated is None else positive(entry, _HEADS, stated)
    if width % heads or (stated is None and width % _HEAD_WIDTH):
        raise LoraError(
            "The width of the text encoder cannot be divided into heads.",
            {"Width": width, "Heads": heads if stated is not None else "one for 64 channels"},
            f'state the right number in the header: {entry} = {{"{_HEADS}": ...}}.',
        )
    return heads


def _shape(shapes: Mapping[str, tuple[int, ...]], key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise LoraError(
            "The text encoder of this checkpoint is not complete.",
            {"Missing (by its name in transformers)": key},
            "download it again, or get it from another source.",
        )
    return shapes[key]
