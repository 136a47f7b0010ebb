"""Progress on standard error."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..lora_core.explain import printable
from .set_inputs import node_name


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
    """Show a bar over ``total`` nodes of a graph, under the same conditions as ``byte_bar``.

    Yields a function to be called with the number of nodes done, in fractions, and what runs.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda done, text: None
        return
    layout = "{percentage:3.0f}%|{bar}| {elapsed} {desc}"
    with tqdm(
        total=total, bar_format=layout, leave=False, disable=None, file=sys.stderr
    ) as bar:  # fmt: skip

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
