"""DoRA in the fused update: gains of rows and columns, from the norms of the patched base."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.dora import NORM_EPS
from ..adapters.matrices import Matrix, Product, Stretched

BaseRows = Callable[[int, int], Tensor]
"""Gives rows ``start`` to ``stop`` of a storage's base, ``(rows, *)``, any float dtype."""


@dataclass(frozen=True)
class Magnitude:
    """One DoRA of one row range of a storage, seen as the storage lies; float32.

    Attributes:
        change: What the base gets before the norm is taken, alpha / rank included.
        norms: The trained norms: ``(rows,)`` for ``axis`` 0; for ``axis`` 1 one per input channel,
            each of ``columns / len(norms)`` neighbouring columns.
        axis: 0 rows, 1 columns.
        coefficient: Dimensionless strength.
    """

    change: Matrix
    norms: Tensor
    axis: int
    coefficient: float

    def squares(self, base: Tensor, first: int) -> Tensor:
        """Sums of the squares of patched rows from ``first`` on, over the other axis."""
        rows = self.change.rows(slice(first, first + base.shape[0]))
        return torch.add(rows, base).square_().sum(1 - self.axis)

    def gains(self, squares: Sequence[Tensor]) -> Tensor:
        """Factor of each patched row ``(rows, 1)`` or column ``(1, columns)``.

        ``squares`` are those of all rows, in order.
        """
        if self.axis == 0:
            sums, width = torch.cat(list(squares)), 1
        else:
            width = self.change.columns // self.norms.shape[0]
            sums = torch.stack(list(squares)).sum(0).reshape(-1, width).sum(1)
        gain = self.norms / (sums.sqrt() + NORM_EPS)
        return gain[:, None] if self.axis == 0 else gain.repeat_interleave(width)[None]

    def gained(self, gain: Tensor) -> Matrix:
        """The change times the strength and the gain of its rows or columns."""
        gain, change = gain * self.coefficient, self.change
        if not isinstance(change, Product):
            return Stretched(change, gain)
        if self.axis == 0:
            return Product(change.up * gain, change.down)
        return Product(change.up, change.down * gain)


@dataclass(frozen=True)
class Gained:
    """Magnitudes whose norms are known: ``delta = changes + rows * base + columns * base``.

    Shapes: ``changes`` one per magnitude; ``rows`` is ``(rows, 1)``, ``columns`` ``(1, columns)``,
    None where no magnitude is of that axis. Coefficients are included.
    """

    changes: tuple[Matrix, ...]
    rows: Tensor | None
    columns: Tensor | None


def gained(
    magnitudes: Sequence[Magnitude],
    base_rows: BaseRows,
    start: int,
    chunks: Iterable[tuple[int, int]],
) -> Gained:
    """Measure the patched base, once for all magnitudes, a few rows at a time.

    Args:
        magnitudes: All of one row range.
        base_rows: See ``BaseRows``.
        start: First row of the range.
        chunks: Row ranges that cover it, in order.
    """
    squares: list[list[Tensor]] = [[] for _ in magnitudes]
    for first, last in chunks:
        base = base_rows(first, last)
        base = base.reshape(last - first, -1).float()
        for sums, magnitude in zip(squares, magnitudes, strict=True):
            sums.append(magnitude.squares(base, first - start))
    gains = [m.gains(sums) for m, sums in zip(magnitudes, squares, strict=True)]
    pairs = list(zip(magnitudes, gains, strict=True))
    return Gained(
        tuple(m.gained(gain) for m, gain in pairs),
        _sum(m.coefficient * (gain - 1) for m, gain in pairs if m.axis == 0),
        _sum(m.coefficient * (gain - 1) for m, gain in pairs if m.axis == 1),
    )


def _sum(parts: Iterable[Tensor]) -> Tensor | None:
    found: Iterator[Tensor] = iter(parts)
    total = next(found, None)
    for part in found:
        assert total is not None
        total = total + part
    return total
