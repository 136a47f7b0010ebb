"""Results and node objects, kept from run to run for as long as prompts have the nodes."""

from collections.abc import Collection, Mapping
from typing import Any

from .node_classes import NodeSpecs
from .results import Result
from .signatures import Key, Signatures


class Cache:
    """Results by node of the present prompt; nodes of equal signatures share one."""

    def __init__(self) -> None:
        self._signatures = Signatures()
        self._keys: Mapping[str, Key] = {}
        self._results: dict[Key, Result] = {}
        self._nodes: dict[tuple[str, str], object] = {}

    def begin(self) -> None:
        """Know nothing until ``use``."""
        self._keys = {}

    def use(
        self, prompt: Mapping[str, Any], specs: NodeSpecs, fingerprints: Mapping[str, object]
    ) -> list[str]:
        """Turn to a prompt, and drop what it does not use; see ``Signatures.of``.

        Returns:
            Ids of the nodes whose results are known.
        """
        self._keys = self._signatures.of(prompt, specs, fingerprints)
        _keep(self._results, set(self._keys.values()))
        _keep(self._nodes, {(node_id, node["class_type"]) for node_id, node in prompt.items()})
        return [node_id for node_id in prompt if node_id in self]

    def node(self, node_id: str, class_type: str, cls: type) -> object:
        """The object of a node, made when first asked for."""
        place = node_id, class_type
        if place not in self._nodes:
            self._nodes[place] = cls()
        return self._nodes[place]

    def __contains__(self, node_id: str) -> bool:
        return self._keys.get(node_id) in self._results

    def __getitem__(self, node_id: str) -> Result:
        return self._results[self._keys[node_id]]

    def __setitem__(self, node_id: str, result: Result) -> None:
        self._results[self._keys[node_id]] = result


def _keep(kept: dict[Any, Any], keys: Collection[object]) -> None:
    for key in [key for key in kept if key not in keys]:
        del kept[key]
