"""One row range of a fused update: its factors, its other matrices, and what needs the base."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapters.matrices import Full, Matrix, Product
from ..adapters.oft import Rotation
from .magnitudes import BaseRows, Magnitude, gained


class Turn(NamedTuple):
    """The rotation of one OFT at its strength, of rows or, where transposed, of columns."""

    rotation: Rotation
    transposed: bool

    def change(self, base: Tensor) -> Tensor:
        """What the whole base of the row range, float32, gains by it."""
        if self.transposed:
            return self.rotation.change(base.t()).t()
        return self.rotation.change(base)


@dataclass(frozen=True)
class View:
    """The update of one row range of a storage, factors on its device in float32.

    ``up`` is ``(stop - start, R)``, ``down`` is ``(R, columns)``: all products as one. ``dense``
    are the other matrices, ``(stop - start, columns)``, their rows made when they are needed;
    coefficients are included. The base's rows times ``row_gain`` ``(stop - start, 1)`` and its
    columns times ``column_gain`` ``(1, columns)`` are added too. While there are ``magnitudes`` or
    ``turns`` the update is not known: see ``FusedUpdate.measured``.
    """

    start: int
    stop: int
    up: Tensor | None
    down: Tensor | None
    dense: tuple[Matrix, ...]
    magnitudes: tuple[Magnitude, ...] = ()
    turns: tuple[Turn, ...] = ()
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
        assert not self.needs_base
        parts = [dense.rows(rows) for dense in self.dense]
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
        """Whether the base's rows are needed for the delta of the same rows."""
        return self.row_gain is not None or self.column_gain is not None

    @property
    def needs_base(self) -> bool:
        """Whether the update is not known before the whole base was read."""
        return bool(self.magnitudes or self.turns)

    @property
    def inner(self) -> tuple[int, ...]:
        """Lengths of the sums in its elements, which decide how a device cuts them."""
        own = 0 if self.up is None else self.up.shape[1]
        return (own, *(length for dense in self.dense for length in dense.inner))

    @property
    def example(self) -> Tensor:
        """Some tensor of it: its dtype and device are those of the delta."""
        return self.up if self.up is not None else self.dense[0].tensors()[0]

    def measured(self, base_rows: BaseRows, chunks: Iterable[tuple[int, int]]) -> "View":
        """The view with its norms taken and its turns made; ``chunks`` are all of the storage."""
        own = ((max(first, self.start), min(last, self.stop)) for first, last in chunks)
        ranges = [(first, last) for first, last in own if first < last]
        return self._with_norms(base_rows, ranges)._with_turns(base_rows, ranges)

    def _with_norms(self, base_rows: BaseRows, ranges: Sequence[tuple[int, int]]) -> "View":
        if not self.magnitudes:
            return self
        found = gained(self.magnitudes, base_rows, self.start, ranges)
        products = [change for change in found.changes if isinstance(change, Product)]
        others = [change for change in found.changes if not isinstance(change, Product)]
        return replace(
            self,
            up=joined([*_present(self.up), *(product.up for product in products)], dim=1),
            down=joined([*_present(self.down), *(product.down for product in products)], dim=0),
            dense=(*self.dense, *others),
            magnitudes=(),
            row_gain=found.rows,
            column_gain=found.columns,
        )

    def _with_turns(self, base_rows: BaseRows, ranges: Sequence[tuple[int, int]]) -> "View":
        """A turn mixes rows, which are overwritten a few at a time: its change is made whole."""
        if not self.turns:
            return self
        chunks = [base_rows(first, last) for first, last in ranges]
        base = torch.cat([chunk.reshape(chunk.shape[0], -1).float() for chunk in chunks])
        total = self.turns[0].change(base)
        for turn in self.turns[1:]:
            total = total + turn.change(base)
        return replace(self, dense=(*self.dense, Full(total)), turns=())


def joined(factors: Sequence[Tensor], dim: int) -> Tensor | None:
    """Factors side by side; None of none."""
    if len(factors) < 2:
        return factors[0] if factors else None
    return torch.cat(list(factors), dim=dim)


def _present(factor: Tensor | None) -> list[Tensor]:
    return [] if factor is None else [factor]
