"""One row range of a fused update: its factors, its full differences, and its gains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from .magnitudes import BaseRows, Magnitude, gained


@dataclass(frozen=True)
class View:
    """The update of one row range of a storage, factors on its device in float32.

    ``up`` is ``(stop - start, R)``, ``down`` is ``(R, columns)``; ``dense`` deltas are
    ``(stop - start, columns)``, coefficients included. The base's rows times ``row_gain``
    ``(stop - start, 1)`` and its columns times ``column_gain`` ``(1, columns)`` are added too.
    While there are ``magnitudes`` the update is not known: see ``FusedUpdate.measured``.
    """

    start: int
    stop: int
    up: Tensor | None
    down: Tensor | None
    dense: tuple[Tensor, ...]
    magnitudes: tuple[Magnitude, ...] = ()
    row_gain: Tensor | None = None
    column_gain: Tensor | None = None

    def add_to(self, values: Tensor, first: int) -> None:
        """Add the delta's rows, from storage row ``first`` on, to ``values``.

        Not ``addmm``: whether its bits are those of a product and a sum depends on the BLAS, the
        shape and the processor, and ``delta`` is added elsewhere.
        """
        start = first - self.start
        values.add_(self.delta(slice(start, start + values.shape[0]), values))

    def delta(self, rows: slice, base: Tensor | None = None) -> Tensor:
        """The delta of ``rows``, counted from ``start``; may be a view.

        ``base`` are these rows of the base weight, any dtype; needed where there is a gain.
        """
        assert not self.magnitudes
        parts = [dense[rows] for dense in self.dense]
        if self.up is not None and self.down is not None:
            parts.insert(0, torch.mm(self.up[rows], self.down))
        if self.has_gain:
            assert base is not None
            row_gain = None if self.row_gain is None else self.row_gain[rows]
            parts += [
                base.float() * gain for gain in (row_gain, self.column_gain) if gain is not None
            ]
        return reduce(torch.add, parts)

    @property
    def has_gain(self) -> bool:
        """Whether the base's rows are needed."""
        return self.row_gain is not None or self.column_gain is not None

    def measured(self, base_rows: BaseRows, chunks: Iterable[tuple[int, int]]) -> "View":
        """The view with its norms taken; ``chunks`` are all row chunks of the storage."""
        if not self.magnitudes:
            return self
        own = ((max(first, self.start), min(last, self.stop)) for first, last in chunks)
        found = gained(self.magnitudes, base_rows, self.start, ((a, b) for a, b in own if a < b))
        return replace(
            self,
            up=joined([*_present(self.up), *found.ups], dim=1),
            down=joined([*_present(self.down), *found.downs], dim=0),
            magnitudes=(),
            row_gain=found.rows,
            column_gain=found.columns,
        )


def joined(factors: Sequence[Tensor], dim: int) -> Tensor | None:
    """Factors side by side; None of none."""
    if len(factors) < 2:
        return factors[0] if factors else None
    return torch.cat(list(factors), dim=dim)


def _present(factor: Tensor | None) -> list[Tensor]:
    return [] if factor is None else [factor]
