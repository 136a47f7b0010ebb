"""Whether JSON has the structure of a workflow, before anything is read from it."""

import json
from collections.abc import Iterator, Mapping

from ...lora_core.errors import DamagedFileError
from .graph import Json


def checked_copy(workflow: Mapping[str, Json]) -> dict[str, Json]:
    """Return a copy of a workflow in UI form that may be changed.

    Raises:
        DamagedFileError: something in it has not the form that the canvas writes.
    """
    try:
        copy: dict[str, Json] = json.loads(json.dumps(dict(workflow)))
    except RecursionError as error:
        raise _damaged("it is nested too deeply") from error
    for graph, name in _graphs(copy):
        for node in _items(graph, "nodes", name):
            _check_node(node, name)
        if graph is not copy:
            _check_subgraph(graph, name)
    return copy


def _graphs(workflow: dict[str, Json]) -> Iterator[tuple[dict[str, Json], str]]:
    _need(isinstance(workflow.get("nodes"), list), "it has no list of nodes")
    _need(isinstance(workflow.get("links") or [], list), "it has no list of links")
    yield workflow, "the workflow"
    state = workflow.get("state") or {}
    _need(isinstance(state, dict), "its state is no object")
    last = (workflow.get("last_node_id") or 0, state.get("lastNodeId") or 0)
    _need(_all([*last], int), "its last node id is no number")
    definitions = workflow.get("definitions") or {}
    _need(isinstance(definitions, dict), "its definitions are no object")
    for item in _items(definitions, "subgraphs", "the definitions"):
        _need(isinstance(item.get("id"), str), "a subgraph has no id")
        yield item, f"subgraph {item.get('name') or item['id']}"
    extra = workflow.get("extra") or {}
    _need(isinstance(extra, dict), "its extra is no object")
    groups = extra.get("groupNodes") or {}
    _need(isinstance(groups, dict), "its groupNodes are no object")
    for name, group in groups.items():
        _need(isinstance(group, dict), f"group {name} is no object")
        _check_group(group, f"group {name}")


def _check_subgraph(graph: dict[str, Json], where: str) -> None:
    for link in _items(graph, "links", where):
        _need({"id", "origin_id", "target_id"} <= link.keys(), f"a link of {where} has no ends")
    for end in ("inputs", "outputs"):
        for port in _items(graph, end, where):
            _need(isinstance(port.get("name"), str), f"an item of {end} in {where} has no name")
            _need(_all(port.get("linkIds"), int), f"the links of {end} in {where} are no numbers")


def _check_group(group: dict[str, Json], where: str) -> None:
    nodes = _items(group, "nodes", where)
    for node in nodes:
        _check_node({"id": 0, **node}, where)
    _need(isinstance(group.get("config") or {}, dict), f"the config of {where} is no object")
    for key, size in (("links", 4), ("external", 2)):
        _need(isinstance(group.get(key) or [], list), f"{key} of {where} is no list")
        for item in group.get(key) or ():
            _need(isinstance(item, list) and len(item) >= size, f"{key} of {where} are no lists")
            _need(_all(item[:size], int | None), f"{key} of {where} are no numbers")
            _need(all(n is None or n < len(nodes) for n in item[0:size:2]), f"{key} of {where}")


def _all(items: Json, kind: Json) -> bool:
    return isinstance(items or [], list) and all(isinstance(item, kind) for item in items or ())


def _check_node(node: dict[str, Json], where: str) -> None:
    _need(isinstance(node.get("id"), int | str), f"a node of {where} has no id")
    name = f"node {node['id']} of {where}"
    _need(isinstance(node.get("type"), str), f"{name} has no type")
    properties = node.get("properties") or {}
    _need(isinstance(properties, dict), f"the properties of {name} are no object")
    shown = properties.get("proxyWidgets") or []
    pairs = isinstance(shown, list) and all(_all(item, str) and len(item) > 1 for item in shown)
    _need(pairs, f"proxyWidgets of {name} are no list of names")
    for item in _items(properties, "proxyWidgetErrorQuarantine", name):
        _need(_all(item.get("originalEntry"), str), f"a kept value of {name} has no origin")
    values = node.get("widgets_values") or []
    _need(isinstance(values, list | dict), f"the values of {name} are no list")
    for slot in _items(node, "inputs", name):
        _need(isinstance(slot.get("name"), str), f"an input of {name} has no name")
        _need(isinstance(slot.get("link"), int | None), f"a link into {name} is no number")
        _need(isinstance(slot.get("widget") or {}, dict), f"a widget of {name} is no object")
    _items(node, "outputs", name)


def _items(data: dict[str, Json], key: str, where: str) -> list[dict[str, Json]]:
    """The objects in a list, which may be missing."""
    items = data.get(key) or []
    whole = isinstance(items, list) and all(isinstance(item, dict) for item in items)
    _need(whole, f"{key} of {where} is no list of objects")
    return items if isinstance(items, list) else []


def _need(holds: bool, problem: str) -> None:
    if not holds:
        raise _damaged(problem)


def _damaged(problem: str) -> DamagedFileError:
    return DamagedFileError(
        "The workflow is damaged.", {"Cause": problem}, "save it again from ComfyUI."
    )
