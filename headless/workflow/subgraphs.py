"""Subgraph definitions, the nodes that stand for them, and the widgets those promote."""

from collections.abc import Iterator, Mapping
from itertools import count

from ...lora_core.errors import LoraError
from .graph import INPUT_END, Graph, Json, Link, Node, Output, Port, Slot, Widget


def in_leaf_first_order(items: list[Json]) -> list[Json]:
    """Order subgraph definitions so that each comes after those it contains.

    Raises:
        LoraError: a subgraph contains itself.
    """
    waiting, ordered = {item["id"]: item for item in items}, []
    while waiting:
        ready = [
            item
            for item in waiting.values()
            if not any(node["type"] in waiting for node in item.get("nodes") or ())
        ]
        if not ready:
            names = ", ".join(str(item.get("name") or item["id"]) for item in waiting.values())
            raise LoraError(
                f"A subgraph of the workflow contains itself: {names}.",
                fix="open the workflow in ComfyUI and take the subgraph out of itself.",
            )
        ordered += ready
        for item in ready:
            del waiting[item["id"]]
    return ordered


def make_ids_unique(workflow: Mapping[str, Json]) -> int:
    """Give nodes inside subgraphs new ids where several graphs of a workflow use the same one.

    ComfyUI frontend: a workflow has one space of ids, new ones follow the highest (1.47). The ids
    of a prompt, like 57:12, are made of the new ones. Returns the highest id.
    """
    items = (workflow.get("definitions") or {}).get("subgraphs") or []
    used = {str(node["id"]) for node in workflow["nodes"]}
    highest = _highest_id(workflow)
    moved: dict[str, dict[str, str]] = {}
    for item in items:
        renamed = {}
        for node in item.get("nodes") or ():
            key = str(node["id"])
            if key in used:
                highest = next(n for n in count(highest + 1) if str(n) not in used)
                renamed[key] = key = str(highest)
                node["id"] = highest
            elif key.isdecimal():
                highest = max(highest, int(key))
            used.add(key)
        moved[item["id"]] = renamed
        _rename_ends(item.get("links") or (), renamed)
    for graph in (*items, workflow):
        _rename_promoted(graph.get("nodes") or (), moved)
    return max([highest, *map(int, filter(str.isdecimal, used))])


def _highest_id(workflow: Mapping[str, Json]) -> int:
    state = workflow.get("state") or {}
    return max(int(workflow.get("last_node_id") or 0), int(state.get("lastNodeId") or 0))


def _rename_ends(links: list[Json], renamed: Mapping[str, str]) -> None:
    for link in links:
        for end in ("origin_id", "target_id"):
            link[end] = renamed.get(str(link[end]), link[end])


def _rename_promoted(nodes: list[Json], moved: Mapping[str, Mapping[str, str]]) -> None:
    for node in nodes:
        entries = (node.get("properties") or {}).get("proxyWidgets")
        renamed = moved.get(node["type"])
        if renamed and isinstance(entries, list):
            for entry in entries:
                entry[0] = renamed.get(str(entry[0]), entry[0])


# --- the node that stands for a subgraph ----------------------------------------------------


def read_host(data: Mapping[str, Json], inner: Graph) -> Node:
    """Read the node of a subgraph; its slots follow the definition, links go by name."""
    title = data.get("title") or inner.name
    host = Node(str(data["id"]), data["type"], title, data.get("mode", 0))
    host.properties = dict(data.get("properties") or {})
    saved = {item["name"]: item for item in data.get("inputs") or ()}
    for port in inner.inputs:
        host.inputs.append(_host_slot(port, inner))
        host.inputs[-1].link = saved.get(port.name, {}).get("link")
    host.outputs = [Output(port.name, port.type) for port in inner.outputs]
    values = data.get("widgets_values")
    _restore_promoted(host, values if isinstance(values, list) else [])
    return host


def _host_slot(port: Port, inner: Graph) -> Slot:
    widget = _inner_widget(port, inner)
    if widget is None:
        return Slot(port.name, port.type)
    promoted = Widget(port.name, widget.value, widget.kind, widget.options)
    return Slot(port.name, port.type, widget=port.name, promoted=promoted)


def _inner_widget(port: Port, inner: Graph) -> Widget | None:
    """The first widget inside that a subgraph's input drives."""
    for _, node, slot in _targets(port, inner):
        widget = slot.promoted or node.widget(slot.widget)
        if widget is not None:
            return widget
    return None


def _targets(port: Port, inner: Graph) -> Iterator[tuple[Link, Node, Slot]]:
    for number in port.links:
        link = inner.links.get(number)
        node = inner.nodes.get(link.target) if link else None
        slot = node.slot_of_link(number) if node else None
        if link and node and slot:
            yield link, node, slot


def _restore_promoted(host: Node, values: list[Json]) -> None:
    quarantined = _quarantined(host)
    promoted = [slot.promoted for slot in host.inputs if slot.promoted]
    for place, widget in enumerate(promoted):
        if widget.name in quarantined:
            widget.value = quarantined[widget.name]
        elif place < len(values):
            widget.value = values[place]


def _quarantined(host: Node) -> dict[str, Json]:
    """Values that an earlier load kept aside, by the name of the host's input."""
    kept = {}
    for item in reversed(host.properties.get("proxyWidgetErrorQuarantine") or ()):
        source, *names = item.get("originalEntry") or [""]
        if source == "-1" and names and item.get("hostValue") is not None:
            kept[names[0]] = item["hostValue"]
    return kept


# --- widgets promoted the way that files before 1.47 name them ------------------------------


def migrate_promoted(host: Node, inner: Graph, hosts: list[Node], values: Json) -> None:
    """Turn ``proxyWidgets`` of a host into inputs of its subgraph, with the host's values.

    ``hosts`` are all nodes of the same subgraph: a new input appears on each of them.
    """
    values = values if isinstance(values, list) else []
    for place, (node_id, name, *_) in enumerate(host.properties.pop("proxyWidgets", None) or ()):
        source = inner.nodes.get(str(node_id))
        slot = _promoted_before(host, inner, str(node_id), name)
        if slot is None and source is not None:
            slot = _promote(host, inner, hosts, source, name)
        value = values[place] if place < len(values) else None
        if slot is not None and slot.promoted and value is not None:
            slot.promoted.value = value


def _promoted_before(host: Node, inner: Graph, node_id: str, name: str) -> Slot | None:
    """The host's input that already drives a widget inside."""
    if node_id == "-1":
        return host.slot_named(name)
    source = inner.nodes.get(node_id)
    if source and _TAKEN_OVER in source.properties:
        return host.slot_named(source.properties[_TAKEN_OVER])
    for slot, port in zip(host.inputs, inner.inputs, strict=True):
        first = next(_targets(port, inner), None)
        if first is None:
            continue
        _, node, target = first
        if node.id == node_id and ((target.promoted and target.name) or target.widget) == name:
            return slot
    return None


# ComfyUI frontend: says on a primitive which input of the subgraph took its place (1.47).
_TAKEN_OVER = "proxyBypassedToSubgraphInput"


def _promote(host: Node, inner: Graph, hosts: list[Node], source: Node, name: str) -> Slot | None:
    """Add an input for a widget inside; that of a primitive drives what the primitive drove."""
    targets = [(source, slot) for slot in source.inputs if slot.widget == name][:1]
    if source.type == "PrimitiveNode":
        targets = list(inner.driven_by(source))
        name = source.title
    if not targets:
        return None  # a preview, or a widget that no longer exists: it has no part in a prompt
    port = Port(_unused_name(name, inner), targets[0][1].type, [], targets[0][1].label)
    for node, slot in targets:
        number = max(inner.links, default=0) + 1
        place = node.inputs.index(slot)
        link = Link(number, INPUT_END, len(inner.inputs), node.id, place, slot.type)
        inner.links[number] = link
        slot.link = number
        port.links.append(number)
    inner.inputs.append(port)
    for item in hosts:
        item.inputs.append(_host_slot(port, inner))
    promoted = host.inputs[-1].promoted
    if source.type == "PrimitiveNode":
        source.properties[_TAKEN_OVER] = port.name
        if promoted and source.widgets:
            promoted.value = source.widgets[0].value
    return host.inputs[-1]


def _unused_name(name: str, inner: Graph) -> str:
    taken = {port.name for port in inner.inputs}
    numbered = (f"{name}_{number}" for number in count(1))
    return name if name not in taken else next(text for text in numbered if text not in taken)
