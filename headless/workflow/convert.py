"""A workflow as the canvas saves it, turned into the prompt that the canvas would send."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ...lora_core.errors import LoraError, UnsupportedFormatError
from .definitions import BROWSER_ONLY
from .graph import ABSENT, BYPASSED, MUTED, Graph, Json, Node, Widget
from .links import Given, LinkTracer, Place
from .loading import Canvas, load_canvas
from .primitives import apply_primitives
from .text import SAVING_NODES, dynamic_prompt, fill_patterns


def to_api(
    workflow: Mapping[str, Json],
    object_info: Mapping[str, Json],
    rng: random.Random | None = None,
) -> dict[str, Json]:
    """Return the prompt that ComfyUI's canvas would send for a workflow.

    Args:
        workflow: UI form, as saved by the canvas.
        object_info: the answer of GET /object_info of the server that will run it.
        rng: chooses where a text offers ``{a|b}``; by default another choice every time.

    Raises:
        LoraError: the workflow is damaged, or holds something that only a browser could run.
    """
    canvas = load_canvas(workflow, object_info)
    nodes = [node for graph in canvas.graphs for node in graph.nodes.values()]
    texts = _Texts(nodes, rng or random.Random(), datetime.now())
    for graph in canvas.graphs:
        apply_primitives(graph, nodes, texts.now)
    places = {place.id: place for place in _places(canvas, canvas.root)}
    sent = [place for place in places.values() if _is_sent(place.node, canvas)]
    _refuse_unknown(sent, canvas)
    _refuse_browser_only(sent)
    tracer = LinkTracer(places, canvas.subgraphs)
    return {place.id: _prompt_node(place, tracer, texts) for place in sent}


def _places(canvas: Canvas, graph: Graph, host: Place | None = None) -> Iterator[Place]:
    for node in graph.nodes.values():
        place = Place(f"{host.id}:{node.id}" if host else node.id, node, graph, host)
        yield place
        if node.type in canvas.subgraphs and (host or node.mode not in (MUTED, BYPASSED)):
            yield from _places(canvas, canvas.subgraphs[node.type], place)


def _is_sent(node: Node, canvas: Canvas) -> bool:
    hidden = node.virtual or node.type in canvas.subgraphs
    return not hidden and node.mode not in (MUTED, BYPASSED)


def _refuse_unknown(sent: list[Place], canvas: Canvas) -> None:
    unknown: dict[str, list[str]] = {}
    for place in sent:
        if place.node.type not in canvas.definitions:
            unknown.setdefault(place.node.type, []).append(place.id)
    if unknown:
        raise LoraError(
            "Not every node of this workflow is known here.",
            {kind: f"node {', '.join(ids)}" for kind, ids in unknown.items()},
            "run it in a ComfyUI that has their packs (--comfyui URL or PATH), or mute the nodes.",
        )


@dataclass(frozen=True)
class _Texts:
    """What the values of texts depend on besides their widget."""

    nodes: Sequence[Node]
    rng: random.Random
    now: datetime

    def value(self, node: Node, widget: Widget) -> Json:
        """The value of a widget in a prompt."""
        value = widget.value
        if not isinstance(value, str):
            return value
        if node.type in SAVING_NODES and widget.name == "filename_prefix":
            return fill_patterns(value, self.nodes, self.now)
        if widget.options.get("dynamicPrompts"):
            return dynamic_prompt(value, self.rng)
        return value


def _refuse_browser_only(sent: list[Place]) -> None:
    found = [place for place in sent if place.node.type in BROWSER_ONLY]
    if found:
        raise UnsupportedFormatError(
            "The workflow needs values that only a browser has: a camera, a microphone, a 3D view.",
            {"Nodes": ", ".join(f"{place.id} ({place.node.type})" for place in found)},
            "run it in ComfyUI, or mute these nodes in the workflow.",
        )


def _prompt_node(place: Place, tracer: LinkTracer, texts: _Texts) -> dict[str, Json]:
    node = place.node
    inputs = {widget.name: texts.value(node, widget) for widget in node.widgets if widget.sent}
    inputs = {name: _wrapped(value) for name, value in inputs.items()}
    for index, slot in enumerate(node.inputs):
        source = tracer.source(place, index)
        if isinstance(source, Given):
            inputs[slot.name] = _wrapped(source.value)
        elif source is not None:
            inputs[slot.name] = [source.id, source.slot]
    inputs = {name: value for name, value in inputs.items() if value is not ABSENT}
    return {"inputs": inputs, "class_type": node.type, "_meta": {"title": node.title}}


def _wrapped(value: Json) -> Json:
    """A list in a prompt is a link, so that a list value goes into an object."""
    return {"__value__": value} if isinstance(value, list) else value
