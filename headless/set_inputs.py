"""``--set NODE.INPUT=VALUE``: values put into a graph before it runs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Any

from ..lora_core.errors import LoraError, UnknownChoiceError

_FORM = "NODE.INPUT=VALUE, NODE being an id, a title or a class, e.g. --set 3.seed=5"
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class Setting:
    """One input of one node, found in the graph, and its new value."""

    node: str
    input: str
    value: Any


def find_settings(
    texts: Iterable[str], prompt: Mapping[str, Any], object_info: Mapping[str, Any]
) -> tuple[Setting, ...]:
    """Look up each ``NODE.INPUT=VALUE`` in a graph.

    Args:
        texts: As on the command line.
        prompt: The graph in API form; it is not changed.
        object_info: What the host says about its nodes, as GET /object_info.

    Raises:
        LoraError: no node or several nodes are meant, the node has no such input, or the value
            is not of the input's type.
    """
    return tuple(_find_setting(text, prompt, object_info) for text in texts)


def with_settings(prompt: Mapping[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    """A copy of the graph with new values; a later setting wins."""
    changed = {node: {**entry, "inputs": dict(entry["inputs"])} for node, entry in prompt.items()}
    for setting in settings:
        changed[setting.node]["inputs"][setting.input] = setting.value
    return changed


def input_specs(class_type: str, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """Name to ``[type, options]`` of the inputs that a class declares; empty for no known class."""
    declared = object_info.get(class_type, {}).get("input", {})
    return {**declared.get("required", {}), **declared.get("optional", {})}


def node_title(entry: Mapping[str, Any]) -> str:
    """The title of a node of a graph, "" when it has none."""
    meta = entry.get("_meta")
    return str(meta.get("title", "")) if isinstance(meta, Mapping) else ""


def node_name(node: str, prompt: Mapping[str, Any]) -> str:
    """What people call a node: its title, or its class."""
    entry = prompt.get(node, {})
    return node_title(entry) or str(entry.get("class_type", node))


def _find_setting(text: str, prompt: Mapping[str, Any], object_info: Mapping[str, Any]) -> Setting:
    target, equals, value = text.partition("=")
    if not equals or "." not in target:
        raise LoraError(f"Cannot read --set {text!r}.", {"Expected": _FORM}, "write it like this.")
    node, name = _find_input(target, prompt, object_info)
    spec = input_specs(prompt[node]["class_type"], object_info).get(name)
    present = prompt[node]["inputs"].get(name)
    where = f"--set {target}: the input {name!r} of {_node_text(node, prompt)}"
    return Setting(node, name, _value(value, spec, present, where))


def _find_input(
    target: str, prompt: Mapping[str, Any], object_info: Mapping[str, Any]
) -> tuple[str, str]:
    """The node and input; titles, ids and inputs may themselves contain dots."""
    known_nodes = []
    for node_name, name in _splits(target):
        nodes = _nodes_named(node_name, prompt)
        if len(nodes) > 1:
            raise LoraError(
                f"--set {target}: {len(nodes)} nodes are called {node_name!r}.",
                {f"Node {node}": _node_text(node, prompt) for node in nodes},
                f"use an id, for example --set {nodes[0]}.{name}=...",
            )
        known_nodes += nodes
        if nodes and name in _input_names(nodes[0], prompt, object_info):
            return nodes[0], name
    raise _unknown(target, known_nodes, prompt, object_info)


def _splits(target: str) -> Iterator[tuple[str, str]]:
    for index, character in enumerate(target):
        if character == ".":
            yield target[:index].strip(), target[index + 1 :].strip()


def _nodes_named(name: str, prompt: Mapping[str, Any]) -> list[str]:
    """Ids of the nodes that a name means: an id before titles, titles before classes."""
    if name in prompt:
        return [name]
    titled = [node for node, entry in prompt.items() if node_title(entry) == name]
    return titled or [node for node in prompt if prompt[node]["class_type"] == name]


def _input_names(
    node: str, prompt: Mapping[str, Any], object_info: Mapping[str, Any]
) -> dict[str, Any]:
    return {**input_specs(prompt[node]["class_type"], object_info), **prompt[node]["inputs"]}


def _unknown(
    target: str,
    known_nodes: list[str],
    prompt: Mapping[str, Any],
    object_info: Mapping[str, Any],
) -> LoraError:
    if known_nodes:
        node = known_nodes[0]
        names = _input_names(node, prompt, object_info)
        name = target.rpartition(".")[2]
        return UnknownChoiceError(f"input of {_node_text(node, prompt)}", name, names)
    name = target.rpartition(".")[0]
    titles = [node_title(entry) for entry in prompt.values()]
    near = get_close_matches(name, [*prompt, *titles], n=1)
    facts = {f"Node {node}": _node_text(node, prompt) for node in prompt}
    fix = f"use {near[0]!r}." if near else "use an id, a title or a class of this graph."
    return LoraError(f"--set {target}: no node is called {name!r}.", facts, fix)


def _value(text: str, spec: Any, present: Any, where: str) -> Any:  # noqa: ANN401  JSON values
    """``text`` as a value of the input's type."""
    kind, options = _kind(spec)
    if kind == "STRING":
        return _unquoted(text)
    if kind == "COMBO":
        plain = _unquoted(text)
        return next((choice for choice in options if str(choice) == plain), plain)
    if kind == "BOOLEAN":
        return _expect(_TRUTH.get(text.strip().lower()), where, "true or false", text)
    if kind == "INT":
        return _expect(_whole_number(text), where, "a whole number", text)
    if kind == "FLOAT":
        return _expect(_number(text), where, "a number", text)
    if isinstance(present, list):
        raise LoraError(
            f"{where} is a connection, not a value.",
            {"Type": kind, "Connected to": f"node {present[0]}, output {present[1]}"},
            "set an input of the node it comes from.",
        )
    return _guessed(text)


def _kind(spec: Any) -> tuple[str, list[Any]]:  # noqa: ANN401  JSON values
    """The input's type, and the choices of a list; "" when nothing is declared."""
    if not spec:
        return "", []
    if isinstance(spec[0], list):
        return "COMBO", spec[0]
    options = spec[1] if len(spec) > 1 else {}
    return spec[0], options.get("options", [])


def _expect(value: Any, where: str, expected: str, got: str) -> Any:  # noqa: ANN401  JSON values
    if value is None:
        raise LoraError(
            f"{where} takes {expected}.", {"Expected": expected, "Got": got}, "change the value."
        )
    return value


def _whole_number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _unquoted(text: str) -> str:
    """The text of a JSON string, with its escapes; any other text as it is."""
    value = _guessed(text)
    return value if isinstance(value, str) else text


def _guessed(text: str) -> Any:  # noqa: ANN401  JSON values
    """A number, truth value or string in JSON's spelling; any other text as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    is_plain = isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))
    return value if is_plain else text


def _node_text(node: str, prompt: Mapping[str, Any]) -> str:
    class_type, title = prompt[node]["class_type"], node_title(prompt[node])
    return f'"{title}" ({class_type})' if title and title != class_type else class_type
