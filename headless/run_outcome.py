"""What came of a run, wherever it ran."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .run_errors import NodeError
from .set_inputs import node_name

DONE, FAILED, WRONG_INPUT = 0, 1, 2


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        status: "success", "error", "interrupted", "refused" or "lost".
        outputs: What nodes show: node, its title, the type, and file or text.
        exit_code: Of the command.
    """

    status: str
    prompt_id: str | None = None
    outputs: Sequence[dict[str, str]] = ()
    errors: Sequence[NodeError] = ()
    executed: Sequence[str] = ()
    cached: Sequence[str] = ()
    exit_code: int = DONE

    def to_json(self, seconds: float, verbose: bool) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "prompt_id": self.prompt_id,
            "status": self.status,
            "outputs": self.outputs,
            "errors": [error.to_json(verbose) for error in self.errors],
            "executed": self.executed,
            "cached": self.cached,
            "seconds": seconds,
        }


def shown_items(
    outputs: Mapping[str, Mapping[str, Any]], prompt: Mapping[str, Any]
) -> Iterator[tuple[dict[str, str], str | Mapping[str, str]]]:
    """What nodes show, one by one: node, title and type, and then a text or a file's description.

    Args:
        outputs: Node id to what it shows, as in /history.
        prompt: The graph in API form.
    """
    for node, shown in outputs.items():
        for kind, items in shown.items():
            result = {"node": node, "title": node_name(node, prompt), "type": kind}
            for item in items if isinstance(items, list) else ():
                if isinstance(item, str) or (isinstance(item, dict) and "filename" in item):
                    yield result, item


def exit_code_of(status: str, refused: Sequence[NodeError], errors: Sequence[NodeError]) -> int:
    """0 when all of it ran, 2 when parts or what nodes were given was refused, 1 when it failed."""
    if errors and all(error.is_of_input for error in errors):
        return WRONG_INPUT
    if status != "success" or errors:
        return FAILED
    return WRONG_INPUT if refused else DONE
