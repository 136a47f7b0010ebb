"""In which order nodes run: ComfyUI's, so that both hosts do the same.

Only what the outputs need runs. Of the nodes that wait for nothing, those that people see come
first: outputs and coroutines, then what feeds an output, then what feeds that, then the oldest.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...lora_core.errors import LoraError
from .node_classes import NodeSpec, NodeSpecs, inputs_of, is_link


class Order:
    """The nodes that are still to run.

    Args:
        prompt: A graph in API form.
        specs: Its classes.
        is_cached: Whether a node's result is known already.
    """

    def __init__(
        self, prompt: Mapping[str, Any], specs: NodeSpecs, is_cached: Callable[[str], bool]
    ) -> None:
        self._prompt, self._specs, self._is_cached = prompt, specs, is_cached
        self._blockers: dict[str, int] = {}  # of each pending node, in the order they were added
        self._blocked: dict[str, dict[str, None]] = {}  # by each pending node
        self._links: set[tuple[str, str]] = set()

    def __bool__(self) -> bool:
        return bool(self._blockers)

    def add(self, node_id: str) -> None:
        """Plan a node and everything it needs; inputs that are lazy wait until it asks for them.

        Raises:
            LoraError: an input that its class does not declare is linked to a node that is not
                there. (Links of declared inputs were checked.)
        """
        ahead, links = [node_id], []
        while ahead:
            current = ahead.pop()
            if current in self._blockers:
                continue
            self._blockers[current], self._blocked[current] = 0, {}
            for source in self._eager_sources(current):
                if not self._is_cached(source):
                    ahead.append(source)
                links.append((source, current))
        for source, target in links:
            self._link(source, target)

    def need(self, node_id: str, name: str) -> None:
        """Let a pending node wait for one of its lazy inputs.

        Raises:
            LoraError: the input is not linked.
        """
        value = inputs_of(self._prompt[node_id]).get(name)
        if not is_link(value):
            raise LoraError(
                f"check_lazy_status asks for the input {name!r}, which is not linked.",
                {"Node": f"{node_id} ({self._prompt[node_id]['class_type']})"},
                "link it, or report it to the author of the node.",
            )
        self._link(value[0], node_id)

    def linked(self, source: str, target: str) -> bool:
        """Whether a node was promised what another gives."""
        return (source, target) in self._links

    def hold(self, node_id: str) -> None:
        """Keep a node that is at work from being chosen again."""
        self._blockers[node_id] += 1

    def release(self, node_id: str) -> None:
        """Undo ``hold``."""
        self._blockers[node_id] -= 1

    def done(self, node_id: str) -> None:
        """Take off a node, and unblock those that waited for it."""
        del self._blockers[node_id]
        for target in self._blocked.pop(node_id):
            self._blockers[target] -= 1

    def next(self) -> str | None:
        """The node to run now; it stays pending. None when all wait."""
        ready = [node_id for node_id, count in self._blockers.items() if count == 0]
        return self._pick(ready) if ready else None

    def cycle(self) -> list[str]:
        """The pending nodes that wait for each other, and those above and below them."""
        left = dict(self._blockers)
        while free := [node_id for node_id, count in left.items() if count == 0]:
            for node_id in free:
                del left[node_id]
                for target in self._blocked[node_id]:
                    left[target] -= 1
        return [*left]

    def _eager_sources(self, node_id: str) -> list[str]:
        node = self._prompt.get(node_id)
        if node is None:
            raise LoraError(
                f"The graph has no node {node_id}, but one is linked to it.",
                {},
                "remove the link, or add the node.",
            )
        spec = self._specs[node["class_type"]]
        return [
            value[0]
            for name, value in inputs_of(node).items()
            if is_link(value) and not spec.has_option(name, "lazy")
        ]

    def _link(self, source: str, target: str) -> None:
        if not self._is_cached(source):
            self.add(source)
            if target not in self._blocked[source]:
                self._blocked[source][target] = None
                self._blockers[target] += 1
        self._links.add((source, target))

    def _pick(self, ready: Sequence[str]) -> str:
        for node_id in ready:
            if self._spec(node_id).is_output or self._spec(node_id).is_async:
                return node_id
        for node_id in ready:
            if any(self._spec(target).is_output for target in self._blocked[node_id]):
                return node_id
        for node_id in ready:
            for target in self._blocked[node_id]:
                if any(self._spec(after).is_output for after in self._blocked[target]):
                    return node_id
        return ready[0]

    def _spec(self, node_id: str) -> NodeSpec:
        return self._specs[self._prompt[node_id]["class_type"]]
