"""What the header of a merged checkpoint says of one LoRA."""

from collections.abc import Mapping
from typing import Any

from ..lora_core.stack import StackItem


def described(item: StackItem) -> Mapping[str, Any]:
    """An item as plain data. Hashes the file the first time."""
    return {
        "name": item.lora.name,
        "sha256": item.lora.sha256,
        "strength_model": item.strength_model,
        "strength_clip": item.strength_clip,
        "weighting": item.weighting.to_text(),
    }
