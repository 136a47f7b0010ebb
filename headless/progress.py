"""Progress on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
