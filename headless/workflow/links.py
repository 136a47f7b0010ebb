"""Where an input gets its value from, through reroutes, bypassed nodes and subgraphs."""

from dataclasses import dataclass

from ...lora_core.errors import LoraError
from .graph import BYPASSED, INPUT_END, MUTED, Graph, Json, Node, Slot


@dataclass(frozen=True)
class Place:
    """A node within the instances of subgraphs around it; ``id`` is the prompt's, like 57:12."""

    id: str
    node: Node
    graph: Graph
    host: "Place | None" = None


@dataclass(frozen=True)
class Origin:
    """An output of a node that a prompt holds."""

    id: str
    slot: int


@dataclass(frozen=True)
class Given:
    """A value set on the node of a subgraph."""

    value: Json


class LinkTracer:
    """Follows links over the places of one workflow."""

    def __init__(self, places: dict[str, Place], subgraphs: dict[str, Graph]) -> None:
        self._places, self._subgraphs = places, subgraphs

    def source(self, place: Place, slot: int) -> Origin | Given | None:
        """Where an input gets its value from; None when nothing is connected in the end.

        Raises:
            LoraError: a link leads nowhere, or in a circle.
        """
        step: _Step = _Into(place, slot, None)
        seen = set()
        while isinstance(step, _Into | _OutOf):
            mark = (type(step), step.place.id, step.slot)
            if mark in seen:
                raise _circle(place, slot)
            seen.add(mark)
            step = self._into(step) if isinstance(step, _Into) else self._out_of(step)
        return step

    def _into(self, step: "_Into") -> "_Step":
        place, slot = step.place, _input(step.place, step.slot)
        if slot.link is None:
            return None
        link = place.graph.links.get(slot.link)
        if link is None:
            raise _dangling(place, slot)
        if place.host and link.origin == INPUT_END:
            outer = _input(place.host, link.origin_slot)
            if outer.link is not None:
                return _Into(place.host, link.origin_slot, None)
            return Given(outer.promoted.value) if outer.promoted else None
        return self._output_of(place, link.origin, link.origin_slot, step.type or slot.type)

    def _output_of(self, beside: Place, node_id: str, slot: int, kind: Json) -> "_OutOf":
        path = f"{beside.host.id}:{node_id}" if beside.host else node_id
        if path not in self._places:
            raise LoraError(
                f"A link of node {beside.id} ({beside.node.type}) starts at node {path}, "
                "which is not in the workflow.",
                fix="save the workflow again from ComfyUI.",
            )
        return _OutOf(self._places[path], slot, kind)

    def _out_of(self, step: "_OutOf") -> "_Step":
        place, node = step.place, step.place.node
        if node.mode == MUTED:
            return None
        if node.mode == BYPASSED:
            index = bypass_input(node, step.slot, step.type)
            return None if index is None else _Into(place, index, None)
        if node.type in self._subgraphs:
            return self._from_inside(step)
        if node.virtual:
            # A reroute passes on what enters; a primitive's value is in its targets already.
            return _Into(place, step.slot, step.type) if step.slot < len(node.inputs) else None
        return Origin(place.id, step.slot)

    def _from_inside(self, step: "_OutOf") -> "_Step":
        host, inner = step.place, self._subgraphs[step.place.node.type]
        port = inner.outputs[step.slot] if step.slot < len(inner.outputs) else None
        link = (
            next((inner.links[n] for n in port.links if n in inner.links), None) if port else None
        )
        if link is None:
            return None
        if link.origin == INPUT_END:
            return _Into(host, link.origin_slot, None)
        inside = Place(f"{host.id}:", host.node, inner, host)
        return self._output_of(inside, link.origin, link.origin_slot, step.type)


@dataclass(frozen=True)
class _Into:
    place: Place
    slot: int
    type: Json


@dataclass(frozen=True)
class _OutOf:
    place: Place
    slot: int
    type: Json


_Step = _Into | _OutOf | Origin | Given | None


def _input(place: Place, slot: int) -> Slot:
    if not 0 <= slot < len(place.node.inputs):
        raise LoraError(
            f"A link ends at input {slot} of node {place.id} ({place.node.type}), which has "
            f"{len(place.node.inputs)} inputs.",
            fix="save the workflow again from ComfyUI.",
        )
    return place.node.inputs[slot]


def _dangling(place: Place, slot: Slot) -> LoraError:
    return LoraError(
        f"Input {slot.name!r} of node {place.id} ({place.node.type}) names link {slot.link}, "
        "which is not in the workflow.",
        fix="save the workflow again from ComfyUI.",
    )


def _circle(place: Place, slot: int) -> LoraError:
    return LoraError(
        f"The links into {place.node.inputs[slot].name!r} of node {place.id} "
        f"({place.node.type}) run in a circle.",
        fix="open the workflow in ComfyUI and break the circle.",
    )


def bypass_input(node: Node, slot: int, kind: Json) -> int | None:
    """The input that stands in for an output of a bypassed node.

    The input at the same place when its type fits, else the first of exactly the type that is
    wanted at the end of the link, else the first that fits.
    """
    inputs = node.inputs
    if kind in ("*", ""):
        return slot if slot < len(inputs) else 0
    output = node.outputs[slot].type if slot < len(node.outputs) else "*"

    def fits(index: int) -> bool:
        return types_fit(inputs[index].type, output) and types_fit(inputs[index].type, kind)

    if slot < len(inputs) and fits(slot):
        return slot
    exact = (index for index, item in enumerate(inputs) if item.type == kind)
    either = (index for index in range(len(inputs)) if fits(index))
    return next(exact, next(either, None))


def types_fit(left: Json, right: Json) -> bool:
    """Whether the canvas lets two slot types meet: any type, or one in common."""
    if left in ("*", "", 0, None) or right in ("*", "", 0, None) or left == right:
        return True
    return bool(_names(left) & _names(right))


def _names(kind: Json) -> set[str]:
    return set(str(kind).lower().split(","))
