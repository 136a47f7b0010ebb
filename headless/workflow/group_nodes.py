"""Group nodes, which canvases before subgraphs made: taken apart into the nodes that they hold.

The ids are those of the frontend's own conversion to a subgraph (1.47); its values are not
followed where a node inside has a combo of the old spelling, which it shifts by one place.
"""

from collections.abc import Iterator, Mapping

from ...lora_core.errors import UnsupportedFormatError
from .definitions import Definitions
from .graph import Graph, Json, Link, Node
from .widgets import set_value

_PREFIXES = ("workflow>", "workflow/")


def group_name(kind: str, groups: Mapping[str, Json]) -> str | None:
    """The name of the group that a node type stands for."""
    name = next((kind[len(p) :] for p in _PREFIXES if kind.startswith(p)), None)
    return name if name in groups else None


def expand_group(
    host: Node, values: Json, inner: list[Node], group: Mapping[str, Json], graph: Graph
) -> None:
    """Put the nodes of a group in place of the node that stands for it.

    Args:
        host: the group's node, which is not in the graph.
        values: its saved values: those of the widgets inside, node by node.
        inner: the nodes inside, read from the group with their final ids.
        group: the description in ``extra.groupNodes``.
        graph: gets the inner nodes, and their links among themselves and to the outside.
    """
    driven = _connect_inside(inner, group, graph)
    names = _GroupNames(group)
    rest = iter(values if isinstance(values, list) else ())
    outer = {slot.name: slot.link for slot in host.inputs}
    converted: list[tuple[int, str]] = []
    for index, node in enumerate(inner):
        sockets = _saved_sockets(group["nodes"][index])
        for widget in list(node.widgets):
            if widget.name in sockets:
                converted.append((index, widget.name))
                continue
            if node.slot_named(widget.name):
                names.name(index, widget.name)
            if widget.saved:
                set_value(node, widget, next(rest, widget.value))
        for slot in node.inputs:
            if slot.widget is None and (index, slot.name) not in driven:
                slot.link = outer.get(names.name(index, slot.name))
    for index, name in converted:
        slot = inner[index].slot_named(name)
        if slot and (index, name) not in driven:
            slot.link = outer.get(names.name(index, name))
    _connect_outputs(host, inner, group, graph)
    graph.nodes.update((node.id, node) for node in inner)


def _saved_sockets(item: Mapping[str, Json]) -> set[str]:
    """Widgets that were turned into sockets, which old canvases did one by one."""
    slots = item.get("inputs") or ()
    return {slot["name"] for slot in slots if (slot.get("widget") or {}).get("name")}


def _connect_inside(
    inner: list[Node], group: Mapping[str, Json], graph: Graph
) -> set[tuple[int, str]]:
    """Make the links within a group; return the inputs that they end at."""
    driven = set()
    for origin, origin_slot, target, target_slot, *_ in _internal_links(group):
        name = _input_name(inner[target], group["nodes"][target], target_slot)
        slot = inner[target].slot_named(name)
        if slot is None:
            continue
        slot.link = number = max(graph.links, default=0) + 1
        place = inner[target].inputs.index(slot)
        graph.links[number] = Link(
            number, inner[origin].id, origin_slot, inner[target].id, place, slot.type
        )
        driven.add((target, name))
    return driven


def _internal_links(group: Mapping[str, Json]) -> Iterator[list[Json]]:
    for link in group.get("links") or ():
        if None not in link[:4]:
            yield link


def _input_name(node: Node, item: Mapping[str, Json], slot: int) -> str:
    """The name of an input, by its place when the group was made."""
    saved = item.get("inputs") or ()
    if slot < len(saved):
        return str(saved[slot]["name"])
    sockets = [entry.name for entry in node.inputs if entry.widget is None]
    return sockets[slot] if slot < len(sockets) else ""


def _connect_outputs(
    host: Node, inner: list[Node], group: Mapping[str, Json], graph: Graph
) -> None:
    """Let links that start at the group start at the node inside."""
    linked = {(link[0], link[1]) for link in _internal_links(group)}
    external = {(item[0], item[1]) for item in group.get("external") or ()}
    shown = []
    for index, node in enumerate(inner):
        config = _config(group, index).get("output") or {}
        for slot in range(len(node.outputs)):
            hidden = (index, slot) in linked and (index, slot) not in external
            if (config.get(str(slot)) or {}).get("visible", not hidden):
                shown.append((node.id, slot))
    for link in graph.links.values():
        if link.origin == host.id and link.origin_slot < len(shown):
            link.origin, link.origin_slot = shown[link.origin_slot]


def _config(group: Mapping[str, Json], index: int) -> Mapping[str, Json]:
    return (group.get("config") or {}).get(str(index)) or {}


class _GroupNames:
    """The names that a group gives to the inputs of its nodes, in the order they are asked for."""

    def __init__(self, group: Mapping[str, Json]) -> None:
        self._group, self._seen = group, dict[str, int]()

    def name(self, index: int, name: str) -> str:
        """The name on the group; a name met before gets the node's title in front."""
        item = self._group["nodes"][index]
        chosen = (_config(self._group, index).get("input") or {}).get(name) or {}
        labels = {slot["name"]: slot.get("label") for slot in item.get("inputs") or ()}
        key = text = chosen.get("name") or labels.get(name) or name
        if text in self._seen:
            prefix = f"{item.get('title') or item['type']} "
            key = text = prefix + name
            if text in self._seen:
                text = f"{prefix}{self._seen[text]} {name}"
        self._seen[key] = self._seen.get(key, 1) + 1
        return text


def refuse_group(host: Node, name: str, group: Json, definitions: Definitions) -> None:
    """Raise UnsupportedFormatError for a group that cannot be taken apart."""
    items = group.get("nodes") if isinstance(group, dict) else None
    kinds = [item.get("type") for item in items or ()]
    unknown = [str(kind) for kind in kinds if kind not in definitions]
    problem = f"it holds {', '.join(unknown)}" if unknown else ""
    if not kinds:
        problem = "it is empty"
    elif host.mode:
        problem = "it is muted or bypassed"
    if problem:
        raise UnsupportedFormatError(
            f"The group node {name!r} (node {host.id}) cannot be taken apart.",
            {"Cause": problem},
            "convert it to a subgraph in ComfyUI and save the workflow.",
        )
