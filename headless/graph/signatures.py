"""What a result depends on, as a key: two nodes with equal keys give equal results."""

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import count
from typing import Any

from .node_classes import NodeSpecs, inputs_of, is_link

Key = int
_Part = tuple[int | None, tuple[str, ...]]  # a node without what is above it; the nodes above


class Signatures:
    """Makes keys that can be compared from one prompt to the next.

    A key tells class, constants and IS_CHANGED of a node and of each node above, and how they are
    linked; ids only where a class asks for its own or says NOT_IDEMPOTENT. Nodes above are counted
    in the order in which they are met, so that one node on two inputs differs from two equal ones.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}  # of what nodes say by themselves, and of wholes
        self._count = count()

    def of(
        self, prompt: Mapping[str, Any], specs: NodeSpecs, fingerprints: Mapping[str, object]
    ) -> dict[str, Key]:
        """A key for each node of a prompt. Keys of a prompt before the last one are forgotten.

        Args:
            prompt: A graph in API form.
            specs: Its classes.
            fingerprints: What IS_CHANGED gave, by node; False where there is none. NaN equals no
                other run's, and what is no JSON equals nothing, so the node and all below it run
                again.
        """
        known, self._numbers = self._numbers, {}
        parts: dict[str, _Part] = {}
        for node_id, node in prompt.items():
            own, above = _own(node_id, node, specs, fingerprints[node_id])
            parts[node_id] = None if own is None else self._number(own, known), above
        return {node_id: self._number(self._whole(node_id, parts), known) for node_id in prompt}

    def _number(self, what: Hashable, known: Mapping[Hashable, int]) -> int:
        """The same number for what is equal, also in the next prompt."""
        number = self._numbers.get(what)
        if number is None:
            number = known.get(what)
            self._numbers[what] = number = next(self._count) if number is None else number
        return number

    def _whole(self, node_id: str, parts: Mapping[str, _Part]) -> tuple[int, ...]:
        """The parts of a node and of those above it, depth first by the names of inputs."""
        places: dict[str, int] = {}
        ahead = [*reversed(parts[node_id][1])]
        while ahead:
            source = ahead.pop()
            if source not in places:
                places[source] = len(places)
                if source in parts:
                    ahead += reversed(parts[source][1])
        whole: list[int] = []
        for each in (node_id, *places):
            number, above = parts.get(each, (None, ()))
            whole.append(next(self._count) if number is None else number)
            whole += [places[source] for source in above]
        return tuple(whole)


def _own(
    node_id: str, node: Mapping[str, Any], specs: NodeSpecs, fingerprint: object
) -> tuple[Hashable, tuple[str, ...]]:
    """What a node says by itself, None when it is equal to nothing; and the nodes above."""
    inputs = inputs_of(node)
    names = sorted(inputs)
    links = [(name, *inputs[name]) for name in names if is_link(inputs[name])]
    above = tuple(source for _, source, _ in links)
    slots = tuple((name, slot) for name, _, slot in links)
    class_type = node["class_type"]
    ident = node_id if specs[class_type].depends_on_id else None
    try:
        values = [(name, _frozen(inputs[name])) for name in names if not is_link(inputs[name])]
        return (class_type, ident, slots, _frozen(fingerprint), *values), above
    except TypeError:
        return None, above


def _frozen(value: object) -> Hashable:
    """JSON as something hashable.

    Raises:
        TypeError: it is no JSON.
    """
    if isinstance(value, float) and math.isnan(value):
        return object()  # unequal to every other, also where a node gives one constant NaN
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, Mapping):
        return frozenset((_frozen(name), _frozen(item)) for name, item in value.items())
    if isinstance(value, Sequence):
        return tuple(map(_frozen, value))
    raise TypeError(f"{type(value).__name__} is no JSON")
