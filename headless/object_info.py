"""What GET /object_info says of node classes, for conversion of workflows and for API clients."""

import json
from collections.abc import Mapping
from typing import Any

_FLAGS = {"DEPRECATED": "deprecated", "EXPERIMENTAL": "experimental"}


def object_info(classes: Mapping[str, type], names: Mapping[str, str]) -> dict[str, Any]:
    """Node id to its description, as JSON data of ComfyUI's shape (0.30).

    Args:
        classes: Node id to V1 class.
        names: Node id to display name; an id without one is its own.
    """
    described = {node_id: _described(node_id, node, names) for node_id, node in classes.items()}
    data: dict[str, Any] = json.loads(json.dumps(described))
    return data


def _described(node_id: str, node: Any, names: Mapping[str, str]) -> dict[str, Any]:  # noqa: ANN401
    inputs = node.INPUT_TYPES()
    outputs = node.RETURN_TYPES
    info = {
        "input": inputs,
        "input_order": {group: list(entries) for group, entries in inputs.items()},
        "is_input_list": getattr(node, "INPUT_IS_LIST", False),
        "output": outputs,
        "output_is_list": getattr(node, "OUTPUT_IS_LIST", [False] * len(outputs)),
        "output_name": getattr(node, "RETURN_NAMES", outputs),
        "name": node_id,
        "display_name": names.get(node_id, node_id),
        "description": getattr(node, "DESCRIPTION", ""),
        "python_module": "nodes",
        "category": getattr(node, "CATEGORY", "sd"),
        "output_node": getattr(node, "OUTPUT_NODE", False) is True,
        "has_intermediate_output": False,
        "search_aliases": getattr(node, "SEARCH_ALIASES", []),
    }
    if hasattr(node, "OUTPUT_TOOLTIPS"):
        info["output_tooltips"] = node.OUTPUT_TOOLTIPS
    flags = {name: True for flag, name in _FLAGS.items() if getattr(node, flag, False)}
    return info | flags
