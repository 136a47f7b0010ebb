"""Tables for a terminal."""

from collections.abc import Iterable, Sequence

from ..lora_core.explain import printable


def text_table(rows: Iterable[Sequence[object]], indent: str = "  ") -> list[str]:
    """Align the cells of rows in columns; the last column is not padded."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return [
        (indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip()
        for row in cells
    ]


def size_text(nbytes: int) -> str:
    """A number of bytes in the decimal unit that suits it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes} B"
