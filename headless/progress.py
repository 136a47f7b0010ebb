"""Progress on standard error."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..lora_core.explain import printable
from .messages import write_text
from .set_inputs import node_name

_APART, _AT_LEAST = 5.0, 30.0  # seconds between lines


def is_terminal() -> bool:
    """Whether a bar on standard error would be seen as one."""
    return sys.stderr.isatty()


class Lines:
    """When to write a line where there is no bar: each tenth of the work, and each 30 s.

    Lines are 5 s apart or more, so that short work writes none.
    """

    def __init__(self) -> None:
        self._tenths, self._last = 0, time.monotonic()

    def is_due(self, share: float) -> bool:
        """Whether to write one now.

        Args:
            share: Of the work, that is done; 0 to 1.
        """
        seconds, tenths = time.monotonic() - self._last, int(share * 10)
        if seconds < _APART or (tenths <= self._tenths and seconds < _AT_LEAST):
            return False
        self._tenths, self._last = tenths, time.monotonic()
        return True


@contextmanager
def byte_bar(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """Show a bar over ``total`` bytes; nothing when tqdm is absent or nobody looks at stderr.

    Yields a function to be called with the number of bytes done since its last call.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda nbytes: None
        return
    with tqdm(
        total=total, desc=label, unit="B", unit_scale=True, leave=False, disable=None,
        file=sys.stderr,
    ) as bar:  # fmt: skip
        yield bar.update


@contextmanager
def graph_bar(total: int) -> Iterator[Callable[[float, str], object]]:
    """Show a bar over ``total`` nodes of a graph; a line now and then where there can be none.

    Yields a function to be called with the number of nodes done, in fractions, and what runs.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or not is_terminal():
        lines = Lines()

        def tell(done: float, text: str) -> None:
            share = min(done / total, 1.0) if total else 1.0
            if lines.is_due(share):
                write_text(f"{share:.0%}: {text}")

        yield tell
        return
    layout = "{percentage:3.0f}%|{bar}| {elapsed} {desc}"
    with tqdm(total=total, bar_format=layout, leave=False, file=sys.stderr) as bar:

        def show(done: float, text: str) -> None:
            bar.n = min(done, total)
            bar.set_description_str(text)

        yield show


def following(
    prompt: Mapping[str, Any], show: Callable[[float, str], object]
) -> Callable[[str, Mapping[str, Any]], None]:
    """Turn events into nodes done, in fractions, and the name of the node that runs."""
    cached, shares, running = 0, dict[str, float](), ""

    def watch(event: str, data: Mapping[str, Any]) -> None:
        nonlocal cached, running
        if event == "execution_cached":
            cached = len(data["nodes"])
        elif event == "executing" and data["node"]:
            running = printable(node_name(data["node"], prompt))
        elif event == "progress_state":
            shares.update({node: _share(state) for node, state in data["nodes"].items()})
        show(cached + sum(shares.values()), running)

    return watch


def _share(state: Mapping[str, Any]) -> float:
    """How much of one node is done, 0 to 1."""
    return min(state["value"] / state["max"], 1.0) if state["max"] else 0.0
