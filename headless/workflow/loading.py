"""From the JSON of a workflow to graphs."""

from collections.abc import Mapping
from dataclasses import dataclass

from .definitions import Definitions, read_definitions
from .graph import Graph, Json, Node, Output, Port, Slot, Widget, read_links
from .group_nodes import expand_group, group_name, refuse_group
from .structure import checked_copy
from .subgraphs import in_leaf_first_order, make_ids_unique, migrate_promoted, read_host
from .widgets import add_inputs, restore_values


@dataclass
class Canvas:
    """A loaded workflow: the root graph, and the subgraph definitions by id."""

    root: Graph
    subgraphs: dict[str, Graph]
    definitions: Definitions

    @property
    def graphs(self) -> list[Graph]:
        """Every graph once, the root first."""
        return [self.root, *self.subgraphs.values()]


def load_canvas(workflow: Mapping[str, Json], object_info: Mapping[str, Json]) -> Canvas:
    """Load a workflow as the canvas does.

    Raises:
        LoraError: it is damaged, or holds something that this conversion does not support.
    """
    workflow = checked_copy(workflow)
    highest = make_ids_unique(workflow)
    items = (workflow.get("definitions") or {}).get("subgraphs") or []
    groups = (workflow.get("extra") or {}).get("groupNodes") or {}
    graphs = (workflow, *items, *groups.values())
    names = {node["type"] for graph in graphs for node in graph.get("nodes") or ()}
    canvas = Canvas(Graph(""), {}, read_definitions(object_info, names))
    for item in in_leaf_first_order(items):
        canvas.subgraphs[item["id"]] = _load_graph(item, canvas)
    canvas.root = _load_graph(workflow, canvas)
    _expand_groups(workflow["nodes"], groups, highest, canvas)
    return canvas


def _expand_groups(
    items: list[Json], groups: Mapping[str, Json], highest: int, canvas: Canvas
) -> None:
    for item in items:
        name = group_name(item["type"], groups)
        if name is None:
            continue
        group, node_id = groups[name], str(item["id"])
        host = canvas.root.nodes.pop(node_id)
        refuse_group(host, name, group, canvas.definitions)
        first, highest = highest + 1, highest + len(group["nodes"]) + 1
        ids = [f"{highest}:{number}" for number in range(first, highest)]
        inner = [
            read_node({**bare, "id": new_id}, canvas.definitions)
            for bare, new_id in zip(group["nodes"], ids, strict=True)
        ]
        for node in inner:
            for slot in node.inputs:
                slot.link = None
        expand_group(host, item.get("widgets_values"), inner, group, canvas.root)


def _load_graph(data: Mapping[str, Json], canvas: Canvas) -> Graph:
    """Read one graph: its nodes and links, and the ends of a subgraph."""
    graph = Graph(str(data.get("id") or ""), data.get("name") or "")
    graph.links = read_links(data.get("links") or ())
    graph.inputs = [_read_port(port) for port in data.get("inputs") or ()]
    graph.outputs = [_read_port(port) for port in data.get("outputs") or ()]
    saved = {}
    for item in data.get("nodes") or ():
        inner = canvas.subgraphs.get(item["type"])
        node = read_host(item, inner) if inner else read_node(item, canvas.definitions)
        graph.nodes[node.id] = node
        saved[node.id] = item.get("widgets_values")
    _migrate_hosts(graph, saved, canvas)
    return graph


def _migrate_hosts(graph: Graph, saved: Mapping[str, Json], canvas: Canvas) -> None:
    hosts = [node for node in graph.nodes.values() if node.type in canvas.subgraphs]
    for host in hosts:
        inner = canvas.subgraphs[host.type]
        others = [
            node
            for other in (graph, *canvas.subgraphs.values())
            for node in other.nodes.values()
            if node.type == host.type
        ]
        migrate_promoted(host, inner, others, saved[host.id])


def _read_port(data: Mapping[str, Json]) -> Port:
    links = [int(link) for link in data.get("linkIds") or ()]
    return Port(data["name"], data.get("type", "*"), links, data.get("label"))


def read_node(data: Mapping[str, Json], definitions: Definitions) -> Node:
    """Read a node; sockets and widgets follow its definition, where the server has one."""
    definition = definitions.get(data["type"])
    title = data.get("title") or (definition.title if definition else data["type"])
    properties = dict(data.get("properties") or {})
    node = Node(str(data["id"]), data["type"], title, data.get("mode", 0), properties=properties)
    if definition is None:
        node.inputs = [_read_slot(slot) for slot in data.get("inputs") or ()]
        node.outputs = [_read_output(output) for output in data.get("outputs") or ()]
        values = data.get("widgets_values")
        if isinstance(values, list):
            node.widgets = [Widget("value", value) for value in values]
        return node
    add_inputs(node, definition.inputs)
    node.outputs = [Output(name, kind) for name, kind in definition.outputs]
    _restore_slots(node, data)
    restore_values(node, definition, data.get("widgets_values"))
    # ComfyUI frontend: Comfy.WidgetInputs drops sockets whose widget is gone (1.47).
    node.inputs = [slot for slot in node.inputs if not slot.widget or node.widget(slot.widget)]
    _mend_values(node)
    return node


def _read_slot(data: Mapping[str, Json]) -> Slot:
    widget = (data.get("widget") or {}).get("name")
    return Slot(data["name"], data.get("type", "*"), data.get("link"), widget, data.get("label"))


def _read_output(data: Mapping[str, Json]) -> Output:
    return Output(data.get("name", ""), data.get("type", "*"))


def _restore_slots(node: Node, data: Mapping[str, Json]) -> None:
    """Take links over by the names of inputs; what the definition lacks is appended."""
    saved = {item["name"]: item for item in data.get("inputs") or ()}
    for slot in node.inputs:
        if slot.name in saved:
            item = saved.pop(slot.name)
            slot.link, slot.label = item.get("link"), item.get("label")
    node.inputs += [_read_slot(item) for item in saved.values()]
    extra = (data.get("outputs") or ())[len(node.outputs) :]
    node.outputs += [_read_output(item) for item in extra]


def _mend_values(node: Node) -> None:
    """Repairs that the canvas makes in old files."""
    for widget in node.widgets:
        if widget.kind == "combo" and widget.value is None:
            widget.value = next(iter(widget.options.get("options") or ()), None)
        # ComfyUI frontend: samplers were once called sample_euler and so on (1.47).
        old = node.type in ("KSampler", "KSamplerAdvanced") and widget.name == "sampler_name"
        if old and isinstance(widget.value, str):
            widget.value = widget.value.removeprefix("sample_")
