"""What is wrong with a prompt as a whole."""

from collections.abc import Mapping
from typing import Any

from .input_errors import Error, error
from .node_classes import NodeSpecs


def shape_error(prompt: object) -> Error | None:
    """JSON of another shape; ComfyUI answers it with status 500."""
    if not isinstance(prompt, Mapping):
        details = f"Expected an object of nodes, got {type(prompt).__name__}"
        return error("invalid_prompt", "The prompt is not a graph in API form", details)
    for node_id, node in prompt.items():
        if not isinstance(node, Mapping):
            details = f"Node ID '#{node_id}'"
            return error(
                "invalid_prompt", "A node of the prompt is no object", details, node_id=node_id
            )
    return None


def class_error(prompt: Mapping[str, Any], specs: NodeSpecs) -> Error | None:
    """The first node whose class is missing or unknown."""
    for node_id, node in prompt.items():
        class_type = node.get("class_type")
        if specs.knows(class_type):
            continue
        meta = node.get("_meta")
        title = meta.get("title") if isinstance(meta, Mapping) else None
        if "class_type" not in node:
            message = (
                f"Node '{title or f'ID #{node_id}'}' has no class_type. "
                "The workflow may be corrupted or a custom node is missing."
            )
        else:
            title = meta.get("title", class_type) if isinstance(meta, Mapping) else class_type
            message = f"Node '{title}' not found. The custom node may not be installed."
        extra = {"node_id": node_id, "class_type": class_type, "node_title": title}
        return error("missing_node_type", message, f"Node ID '#{node_id}'", **extra)
    return None
