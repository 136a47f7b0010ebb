"""A workflow as the canvas holds it after loading: nodes, their slots and widgets, and links."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from ...lora_core.errors import LoraError


class Absent(Enum):
    """What JavaScript calls undefined: such a value is left out of a prompt."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT

Json = Any  # what json.loads may return

# ComfyUI frontend: the ids of a subgraph's own two ends (1.47).
INPUT_END = "-10"
OUTPUT_END = "-20"

MUTED = 2
BYPASSED = 4
# Nodes that exist on the canvas only.
VIRTUAL_TYPES = frozenset({"Reroute", "PrimitiveNode", "Note", "MarkdownNote"})


@dataclass
class Widget:
    """A value on a node.

    ``sent`` says that prompts hold it; ``saved`` that it has a place in ``widgets_values``.
    """

    name: str
    value: Json = ABSENT
    kind: str = ""
    options: Mapping[str, Json] = field(default_factory=dict)
    sent: bool = True
    saved: bool = True


@dataclass
class Slot:
    """An input of a node: the link that ends there, and the widget it stands for."""

    name: str
    type: Json = "*"
    link: int | None = None
    widget: str | None = None
    label: str | None = None
    promoted: Widget | None = None  # of a subgraph's node: the value in place of a link


@dataclass
class Output:
    """An output of a node."""

    name: str
    type: Json


@dataclass
class Link:
    """From an output to an input of the same graph; a subgraph's ends count as nodes."""

    id: int
    origin: str
    origin_slot: int
    target: str
    target_slot: int
    type: Json = "*"


@dataclass
class Node:
    """A node of one graph; in a subgraph it stands for its copies in all instances."""

    id: str
    type: str
    title: str
    mode: int = 0
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    widgets: list[Widget] = field(default_factory=list)
    properties: dict[str, Json] = field(default_factory=dict)

    @property
    def virtual(self) -> bool:
        """Whether a prompt never holds this node."""
        return self.type in VIRTUAL_TYPES

    def widget(self, name: str | None) -> Widget | None:
        """The first widget of a name."""
        return next((widget for widget in self.widgets if widget.name == name), None)

    def slot_named(self, name: str) -> Slot | None:
        """The first input of a name."""
        return next((slot for slot in self.inputs if slot.name == name), None)

    def slot_of_link(self, link: int) -> Slot | None:
        """The input at which a link ends."""
        return next((slot for slot in self.inputs if slot.link == link), None)


@dataclass
class Port:
    """An input or output of a subgraph, with its links inside."""

    name: str
    type: Json
    links: list[int]
    label: str | None = None


@dataclass
class Graph:
    """The root graph (``id`` empty) or one subgraph definition."""

    id: str
    name: str = ""
    nodes: dict[str, Node] = field(default_factory=dict)
    links: dict[int, Link] = field(default_factory=dict)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)

    def links_from(self, node_id: str, slot: int) -> Iterator[Link]:
        """Links that start at an output."""
        for link in self.links.values():
            if link.origin == node_id and link.origin_slot == slot:
                yield link

    def driven_by(self, primitive: Node) -> Iterator[tuple[Node, Slot]]:
        """The inputs at which the links of a primitive end."""
        for link in self.links_from(primitive.id, 0):
            node = self.nodes.get(link.target)
            slot = node.slot_of_link(link.id) if node else None
            if node and slot:
                yield node, slot


def read_links(items: Iterable[Json]) -> dict[int, Link]:
    """Links by id, from the arrays of schema 0.4 or the objects of schema 1.

    Raises:
        LoraError: an item is neither.
    """
    links = {}
    for item in items:
        link = _read_link(item)
        links[link.id] = link
    return links


def _read_link(item: Json) -> Link:
    try:
        if isinstance(item, Mapping):
            names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
            values = [item[name] for name in names] + [item.get("type", "*")]
        else:
            values = [*item][:6]
        number, origin, origin_slot, target, target_slot, kind = values
        return Link(int(number), str(origin), int(origin_slot), str(target), int(target_slot), kind)
    except (KeyError, TypeError, ValueError) as error:
        raise LoraError(
            "A link of the workflow cannot be read.",
            {"Link": str(item)[:200]},
            "save the workflow again from ComfyUI.",
        ) from error
