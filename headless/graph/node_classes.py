"""What the runner asks of V1 node classes, and how it reads the inputs of a prompt's nodes."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from ...lora_core.errors import LoraError

# Hidden inputs that come with a request, by the key of its extra_data.
_FROM_EXTRA_DATA = {
    "EXTRA_PNGINFO": "extra_pnginfo",
    "AUTH_TOKEN_COMFY_ORG": "auth_token_comfy_org",
    "API_KEY_COMFY_ORG": "api_key_comfy_org",
    "COMFY_USAGE_SOURCE": "comfy_usage_source",
}
Inputs = dict[str, Any]  # name to a sequence of values, one per call
MISSING = (None,)


class LiteralList(list[Any]):
    """A list that a node takes as a value, although two of its kind would make a link."""


class InputInfo(NamedTuple):
    """What a class says about one of its inputs; ``category`` is required, optional or hidden."""

    type: Any
    category: str
    options: Mapping[str, Any]


class NodeSpec:
    """One class, asked for its inputs once in the life of this object."""

    def __init__(self, cls: type) -> None:
        self.cls: Any = cls

    @cached_property
    def inputs(self) -> Mapping[str, Mapping[str, Any]]:
        """INPUT_TYPES."""
        return self.cls.INPUT_TYPES()

    @cached_property
    def hidden(self) -> Mapping[str, str]:
        """Name to kind, such as PROMPT."""
        return self.inputs.get("hidden", {})

    @cached_property
    def is_output(self) -> bool:
        """Whether a graph may end in it."""
        return getattr(self.cls, "OUTPUT_NODE", False) is True

    @cached_property
    def is_async(self) -> bool:
        """Whether its function is a coroutine function."""
        return inspect.iscoroutinefunction(getattr(self.cls, self.cls.FUNCTION, None))

    @cached_property
    def depends_on_id(self) -> bool:
        """Whether two nodes of equal inputs may give different results."""
        return getattr(self.cls, "NOT_IDEMPOTENT", False) or "UNIQUE_ID" in self.hidden.values()

    def declared(self) -> Iterator[str]:
        """Names of inputs in the order of the class, hidden ones left out."""
        yield from {**self.inputs.get("required", {}), **self.inputs.get("optional", {})}

    def input(self, name: str) -> InputInfo | None:
        """What the class says about an input; None for a name that it does not know."""
        for category in ("required", "optional", "hidden"):
            declared = self.inputs.get(category, {}).get(name)
            if declared is not None:
                options = declared[1] if len(declared) > 1 else {}
                return InputInfo(declared[0], category, options)
        return None

    def has_option(self, name: str, option: str) -> bool:
        """Whether an input has an option that is on, such as ``lazy``."""
        info = self.input(name)
        return info is not None and bool(info.options and info.options.get(option))


class NodeSpecs(dict[str, NodeSpec]):
    """Specs by class name, made when first asked for."""

    def __init__(self, classes: Mapping[str, type]) -> None:
        super().__init__()
        self._classes = classes

    def __missing__(self, class_type: str) -> NodeSpec:
        spec = self[class_type] = NodeSpec(self._classes[class_type])
        return spec

    def knows(self, class_type: object) -> bool:
        """Whether there is a class of this name."""
        return isinstance(class_type, str) and class_type in self._classes


def is_link(value: object) -> bool:
    """Whether a value of a prompt points at an output: ``[node id, slot]``."""
    return (
        isinstance(value, list)
        and not isinstance(value, LiteralList)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
    )


def copied(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt whose nodes and inputs can be written to."""
    return {
        node_id: {**node, "inputs": {**node["inputs"]}} if _has_inputs(node) else node
        for node_id, node in prompt.items()
    }


def inputs_of(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs of a prompt's node; none where they are damaged, as on a node that nobody uses."""
    return node["inputs"] if _has_inputs(node) else {}


def gathered(
    inputs: Mapping[str, Any],
    spec: NodeSpec,
    read: Callable[[str, Any], list[Any] | None],
    hidden: Callable[[str], Any],
) -> tuple[Inputs, set[str]]:
    """What a node's function is called with.

    Args:
        inputs: Of the node, in the prompt.
        spec: Of its class.
        read: Gives the values at an output, None where there are none yet.
        hidden: Gives a hidden input by its kind, or raises KeyError.

    Returns:
        Name to values, one per call; and the names whose values are not there.
    """
    data: Inputs = {}
    missing: set[str] = set()
    for name, value in inputs.items():
        if is_link(value) and not spec.has_option(name, "rawLink"):
            values = read(*value)
            if values is None:
                missing.add(name)
            data[name] = MISSING if values is None else values
        elif spec.input(name) is not None:
            data[name] = [value]
    for name, kind in spec.hidden.items():
        try:
            data[name] = [hidden(kind)]
        except KeyError:  # a kind that this version does not know
            continue
    return data, missing


def constants(inputs: Mapping[str, Any], spec: NodeSpec, node_id: str) -> Inputs:
    """What IS_CHANGED and VALIDATE_INPUTS see: linked inputs are None, the prompt is empty."""

    def hidden(kind: str) -> object:
        known = {"PROMPT": {}, "DYNPROMPT": None, "UNIQUE_ID": node_id}
        return known[kind] if kind in known else {}.get(_FROM_EXTRA_DATA[kind])

    return gathered(inputs, spec, lambda source, slot: None, hidden)[0]


def hidden_input(
    kind: str, node_id: str, prompt: Mapping[str, Any], extra_data: Mapping[str, Any]
) -> Any:  # noqa: ANN401
    """A hidden input of a node that runs.

    Raises:
        KeyError: the kind is unknown.
        LoraError: only ComfyUI has it.
    """
    if kind == "PROMPT":
        return prompt
    if kind == "UNIQUE_ID":
        return node_id
    if kind == "DYNPROMPT":
        raise only_in_comfyui(node_id, prompt[node_id]["class_type"], "DYNPROMPT")
    return extra_data.get(_FROM_EXTRA_DATA[kind])


def only_in_comfyui(node_id: str, class_type: str, what: str) -> LoraError:
    """The error for what this runner leaves to ComfyUI."""
    return LoraError(
        f"Node {node_id} ({class_type}) needs {what}, which only ComfyUI has.",
        {},
        "run the graph in ComfyUI: add --comfyui URL or PATH.",
    )


def _has_inputs(node: object) -> bool:
    return isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)
