"""From what a node's function returned to the lists that its outputs carry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .node_classes import only_in_comfyui


@dataclass(frozen=True)
class Result:
    """What a node gave.

    Attributes:
        outputs: The values at each slot.
        ui: What it shows, kind to items; empty when nothing.
    """

    outputs: Sequence[list[Any]]
    ui: Mapping[str, list[Any]]


def collected(returns: Sequence[Any], cls: Any, node_id: str) -> Result:  # noqa: ANN401
    """Join the returned values of all calls of one node.

    Raises:
        LoraError: a call asks for what only ComfyUI has: new nodes, or to block what follows.
        Exception: the returned values are no tuples, or of different lengths.
    """
    values, shown = [], []
    for returned in returns:
        _refuse(returned, cls, node_id)
        if not isinstance(returned, dict):
            values.append(returned)
            continue
        if "ui" in returned:
            shown.append(returned["ui"])
        if "result" in returned:
            values.append(returned["result"])
    ui = {kind: [item for each in shown for item in each[kind]] for kind in _kinds(shown)}
    return Result(_slots(values, cls), ui)


def _kinds(shown: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    return [*shown[0]] if shown else []


def _slots(values: Sequence[Any], cls: Any) -> list[list[Any]]:  # noqa: ANN401
    if not values:
        return []
    width = len(values[0])
    are_lists = getattr(cls, "OUTPUT_IS_LIST", [False] * width)
    return [
        [item for value in values for item in value[slot]]
        if is_list
        else [value[slot] for value in values]
        for slot, is_list in zip(range(width), are_lists, strict=False)
    ]


def _refuse(returned: object, cls: type, node_id: str) -> None:
    """No silent wrong result where a node relies on ComfyUI."""
    if isinstance(returned, dict):
        if "expand" in returned:
            raise only_in_comfyui(node_id, cls.__name__, "node expansion")
        returned = returned.get("result")
    items = returned if isinstance(returned, tuple | list) else [returned]
    if any(type(item).__name__ == "ExecutionBlocker" for item in items):
        raise only_in_comfyui(node_id, cls.__name__, "ExecutionBlocker")
