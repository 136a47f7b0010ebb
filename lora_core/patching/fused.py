"""The fused update: all terms of one storage as one low-rank product, added in float32."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..adapters import Adapter, Additive, DoraAdapter, OftAdapter
from ..adapters.matrices import Matrix, Product
from ..stack import Term
from .kernels import calculating_for
from .magnitudes import BaseRows, Magnitude
from .views import Turn, View, joined

CHUNK_ELEMENTS = 1 << 20
"""Elements per row chunk: the float32 temporary (4 MB) stays in the cache of two or more cores."""

_LARGEST = {
    torch.float8_e4m3fn: 448.0,
    torch.float8_e5m2: 57344.0,
}
MERGEABLE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, *_LARGEST)


def row_chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Row ranges ``(start, stop)`` of a storage, each of about ``CHUNK_ELEMENTS`` elements.

    Depends on the shape alone, so that an undo cuts as the merge did.
    """
    rows = shape[0]
    step = max(1, CHUNK_ELEMENTS // max(1, math.prod(shape[1:])))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 ``values`` to ``dtype``, to nearest even; fp8 is clamped to its range."""
    return in_range(values, dtype).to(dtype)


def in_range(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` clamped to the range of an fp8 ``dtype``; unchanged for the others."""
    largest = _LARGEST.get(dtype)
    return values if largest is None else values.clamp(-largest, largest)


@dataclass(frozen=True)
class FusedUpdate:
    """The sum of all deltas of one storage, ready to be added row by row."""

    views: tuple[View, ...]

    @property
    def depends_on_base(self) -> bool:
        """Whether ``measured`` must be called, and the base's rows given to ``delta``."""
        return any(view.needs_base or view.has_gain for view in self.views)

    def measured(self, base_rows: BaseRows, shape: tuple[int, ...]) -> "FusedUpdate":
        """The update with its norms taken and its turns made, for which the base is read once.

        Args:
            base_rows: Gives rows of the base, at most those of one row chunk.
            shape: The storage's.
        """
        chunks = list(row_chunks(shape))
        return FusedUpdate(tuple(view.measured(base_rows, chunks) for view in self.views))

    def ranks(self) -> tuple[tuple[int, ...], ...]:
        """Per row range: first row, stop row, columns of its factors, then other inner lengths."""
        return tuple((view.start, view.stop, *view.inner) for view in self.views)

    def add_to(self, values: Tensor, start: int) -> Tensor:
        """Add the delta's rows from ``start`` on to ``values`` ``(rows, columns)``, in place.

        ``values`` is float32.
        """
        for view, first, last in self._overlaps(start, start + values.shape[0]):
            view.add_to(values[first - start : last - start], first)
        return values

    def delta(self, start: int, stop: int, columns: int, base: Tensor | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of the delta, ``(stop - start, columns)``, float32.

        ``add_to`` gives the bits of a sum with it. ``base`` are these rows of the base, any dtype,
        needed where the update depends on it.
        """
        parts = []
        for view, first, last in self._overlaps(start, stop):
            here = slice(first - start, last - start)
            own = None if base is None else base[here]
            parts.append((here, view.delta(slice(first - view.start, last - view.start), own)))
        if len(parts) == 1 and parts[0][0] == slice(0, stop - start):
            return parts[0][1]
        shape = (stop - start, columns)
        delta = self.views[0].example.new_full(shape, -0.0)  # x + -0.0 is x, for both zeros
        for here, rows in parts:
            delta[here] = rows
        return delta

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[View, int, int]]:
        for view in self.views:
            first, last = max(start, view.start), min(stop, view.stop)
            if first < last:
                yield view, first, last


def fuse(
    terms: Iterable[Term],
    shape: tuple[int, ...],
    adapter_of: Callable[[Term], Adapter],
) -> FusedUpdate:
    """Fuse the terms of one storage of ``shape``.

    Args:
        terms: In canonical order.
        shape: The storage's shape, ``(out, in, *kernel)`` or ``(n,)``.
        adapter_of: Gives a term's adapter, its tensors on the storage's device.
    """
    by_rows: dict[tuple[int, int], list[Term]] = {}
    for term in terms:
        by_rows.setdefault(term.target.rows or (0, shape[0]), []).append(term)
    return FusedUpdate(
        tuple(_view(rows, group, adapter_of) for rows, group in sorted(by_rows.items()))
    )


def _view(
    rows: tuple[int, int], terms: Iterable[Term], adapter_of: Callable[[Term], Adapter]
) -> View:
    products: list[Product] = []
    dense: list[Matrix] = []
    magnitudes, turns = [], []
    for term in terms:
        adapter = adapter_of(term)
        if isinstance(adapter, DoraAdapter):
            magnitudes.append(_magnitude(term, adapter))
        elif isinstance(adapter, OftAdapter):
            turns.append(Turn(adapter.rotation(term.coefficient), term.target.transposed))
        else:
            matrix = _matrix(term, cast(Additive, adapter), term.coefficient)
            if isinstance(matrix, Product):
                products.append(matrix)
            else:
                dense.append(matrix)
    return View(
        *rows,
        up=joined([product.up for product in products], dim=1),
        down=joined([product.down for product in products], dim=0),
        dense=tuple(dense),
        magnitudes=tuple(magnitudes),
        turns=tuple(turns),
    )


def _magnitude(term: Term, adapter: DoraAdapter) -> Magnitude:
    norms, axis = adapter.magnitude.float().flatten(), adapter.axis
    if term.target.transposed:
        axis = 1 - axis
    return Magnitude(_matrix(term, adapter.change, 1.0), norms, axis, term.coefficient)


def _matrix(term: Term, adapter: Additive, coefficient: float) -> Matrix:
    """An update as its storage lies, scale and coefficient included."""
    matrix: Matrix = adapter.matrix(term.target.shape)
    if term.target.transposed:
        matrix = matrix.transposed()
    return matrix.scaled(coefficient * adapter.scale)


def merged_rows(base: Tensor, update: FusedUpdate, start: int, dtype: torch.dtype) -> Tensor:
    """Return ``round(base + delta)`` for rows from ``start`` on.

    Args:
        base: Base rows ``(rows, columns)``, any mergeable dtype; not changed.
        update: The storage's update.
        start: First row of ``base`` in the storage.
        dtype: Dtype of the result.
    """
    return rounded(_sum(base, update, start), dtype)


def write_merged(weight: Tensor, base: Tensor, update: FusedUpdate, start: int) -> None:
    """Write ``merged_rows`` of ``base`` into a storage, without another copy of them.

    Args:
        weight: The storage; rows from ``start`` on are overwritten.
        base: Base rows, shaped as in the storage; not changed.
        update: The storage's update.
        start: First row.
    """
    rows = weight[start : start + base.shape[0]]
    loops = calculating_for(base, rows)
    if loops is not None:
        columns = math.prod(rows.shape[1:])
        delta = update.delta(start, start + rows.shape[0], columns, as_matrix(base))
        loops.add_rounded(rows, base, delta.contiguous(), 1)
    else:
        values = in_range(_sum(as_matrix(base), update, start), weight.dtype)
        rows.copy_(values.reshape(rows.shape))  # rounds


def add_rounded(base: Tensor, delta: Tensor, sign: int) -> Tensor:
    """``round(base + sign * delta)``, contiguous, in memory of its own.

    Args:
        base: ``(rows, columns)`` of any mergeable dtype.
        delta: The same in float32.
        sign: 1 or -1.
    """
    loops = calculating_for(base, delta)
    if loops is None:
        values = base.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        return rounded(values.add_(delta, alpha=sign), base.dtype)
    out = torch.empty_like(base)
    loops.add_rounded(out, base, delta, sign)
    return out


def as_matrix(rows: Tensor) -> Tensor:
    """``(rows, *)`` as ``(rows, columns)``, a view where the layout allows it."""
    return rows.reshape(rows.shape[0], -1)


def _sum(base: Tensor, update: FusedUpdate, start: int) -> Tensor:
    values = base.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return update.add_to(values, start)
