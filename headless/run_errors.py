"""What went wrong in a graph, from ComfyUI's answers, in words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..lora_core.errors import FailedError, LoraError
from .set_inputs import node_title


class RunFailedError(LoraError):
    """The run ended without a result although nothing was wrong with the input."""


@dataclass(frozen=True)
class NodeError:
    """One thing that a node reported.

    Attributes:
        node: Id in the graph, "" when the graph as a whole is meant.
        title: As the user named the node, "" when only its class is known.
        class_type: Of the node.
        input: Name of the input that was refused, "" when the node failed while running.
        kind: ComfyUI's type of the refusal, or the name of the exception.
        message: In words; several lines when the node's author wrote several.
        traceback: Python's, "" for a refused input.
    """

    node: str
    title: str
    class_type: str
    input: str
    kind: str
    message: str
    traceback: str = ""

    @property
    def is_of_input(self) -> bool:
        """Whether a node of ours found, while running, that what it was given is wrong."""
        module, _, name = self.kind.rpartition(".")
        return module == LoraError.__module__ and name != FailedError.__name__

    def to_json(self, verbose: bool) -> dict[str, str]:
        """The fields; the traceback only when ``verbose``."""
        document = {
            "node": self.node,
            "title": self.title,
            "class": self.class_type,
            "input": self.input,
            "type": self.kind,
            "message": self.message,
        }
        return {**document, "traceback": self.traceback} if verbose else document

    def to_text(self, verbose: bool) -> str:
        """Where it happened, then the message indented; as it is when the graph is not to blame."""
        lines = self.message.splitlines()
        if verbose:
            lines += self.traceback.splitlines()
        where = ", ".join(part for part in (self._node_text(), self._input_text()) if part)
        if not where and self.kind == RunFailedError.__name__:
            return "\n".join(lines)
        return "\n".join([f"{where or 'The graph'}:", *(f"  {line}" for line in lines)])

    def _node_text(self) -> str:
        if not self.node:
            return ""
        title = f' "{self.title}"' if self.title and self.title != self.class_type else ""
        return f"Node {self.node}{title} ({self.class_type})"

    def _input_text(self) -> str:
        return f"input {self.input!r}" if self.input else ""


def refusals(prompt: Mapping[str, Any], answer: Mapping[str, Any]) -> tuple[NodeError, ...]:
    """What validation found, from the answer of POST /prompt.

    The graph's own error is left out when it only repeats those of its nodes.
    """
    of_nodes = tuple(
        _refusal(prompt, node, entry, error)
        for node, entry in answer.get("node_errors", {}).items()
        for error in entry["errors"]
    )
    return of_nodes or tuple(_graph_refusals(prompt, answer.get("error")))


def failure(prompt: Mapping[str, Any], event: Mapping[str, Any]) -> NodeError:
    """What a node raised, from ``execution_error``."""
    node = event["node_id"]
    return NodeError(
        node=node,
        title=node_title(prompt.get(node, {})),
        class_type=event["node_type"],
        input="",
        kind=event["exception_type"],
        message=event["exception_message"].strip() or event["exception_type"],
        traceback="".join(event["traceback"]).rstrip(),
    )


def _refusal(
    prompt: Mapping[str, Any], node: str, entry: Mapping[str, Any], error: Mapping[str, Any]
) -> NodeError:
    extra = error.get("extra_info") or {}
    name = str(extra.get("input_name", ""))
    return NodeError(
        node=node,
        title=node_title(prompt.get(node, {})),
        class_type=entry["class_type"],
        input=name,
        kind=error["type"],
        message=_message(error, name),
        traceback="".join(extra.get("traceback", ())).rstrip(),
    )


def _graph_refusals(prompt: Mapping[str, Any], error: Any) -> Iterator[NodeError]:  # noqa: ANN401
    if isinstance(error, Mapping):
        extra = error.get("extra_info") or {}
        node = str(extra.get("node_id") or "")
        class_type = str(extra.get("class_type") or "no class")
        yield NodeError(
            node, node_title(prompt.get(node, {})), class_type, "", error["type"], _message(error)
        )
    elif error:
        yield NodeError("", "", "", "", "error", str(error))


def _message(error: Mapping[str, Any], input_name: str = "") -> str:
    """The message and its details; details that only repeat the input's name are left out."""
    details = error.get("details", "")
    return f"{error['message']}\n{details}" if details not in ("", input_name) else error["message"]
