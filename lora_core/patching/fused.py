"""The fused update: all terms of one storage as one low-rank product, added in float32."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..adapters import Adapter
from ..stack import Term
from .kernels import calculating_for

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
class _View:
    """The update of one row range of a storage, factors on its device in float32.

    ``up`` is ``(stop - start, R)``, ``down`` is ``(R, columns)``; ``dense`` deltas are
    ``(stop - start, columns)``, coefficients included.
    """

    start: int
    stop: int
    up: Tensor | None
    down: Tensor | None
    dense: tuple[Tensor, ...]

    def add_to(self, values: Tensor, first: int) -> None:
        """Add the delta's rows, from storage row ``first`` on, to ``values``.

        Not ``addmm``: whether its bits are those of a product and a sum depends on the BLAS, the
        shape and the processor, and ``delta`` is added elsewhere.
        """
        start = first - self.start
        values.add_(self.delta(slice(start, start + values.shape[0])))

    def delta(self, rows: slice) -> Tensor:
        """The delta of ``rows``, counted from ``start``; may be a view."""
        parts = [dense[rows] for dense in self.dense]
        if self.up is not None and self.down is not None:
            parts.insert(0, torch.mm(self.up[rows], self.down))
        return reduce(torch.add, parts)


@dataclass(frozen=True)
class FusedUpdate:
    """The sum of all deltas of one storage, ready to be added row by row."""

    views: tuple[_View, ...]

    def ranks(self) -> tuple[tuple[int, int, int], ...]:
        """Per row range: first row, stop row, columns of its factors."""
        return tuple(
            (view.start, view.stop, 0 if view.up is None else view.up.shape[1])
            for view in self.views
        )

    def add_to(self, values: Tensor, start: int) -> Tensor:
        """Add the delta's rows from ``start`` on to ``values`` ``(rows, columns)``, in place.

        ``values`` is float32.
        """
        for view, first, last in self._overlaps(start, start + values.shape[0]):
            view.add_to(values[first - start : last - start], first)
        return values

    def delta(self, start: int, stop: int, columns: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the delta, ``(stop - start, columns)``, float32.

        ``add_to`` gives the bits of a sum with it.
        """
        parts = [
            (first - start, last - start, view.delta(slice(first - view.start, last - view.start)))
            for view, first, last in self._overlaps(start, stop)
        ]
        if len(parts) == 1 and parts[0][:2] == (0, stop - start):
            return parts[0][2]
        like = self.views[0].up if self.views[0].up is not None else self.views[0].dense[0]
        delta = like.new_full((stop - start, columns), -0.0)  # x + -0.0 is x, for both zeros
        for first, last, rows in parts:
            delta[first:last] = rows
        return delta

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[_View, int, int]]:
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
) -> _View:
    ups, downs, dense = [], [], []
    for term in terms:
        adapter = adapter_of(term)
        thin = adapter.thin(term.target.shape)
        if thin is None:
            dense.append(_dense(term, adapter))
            continue
        up, down = (thin.down.t(), thin.up.t()) if term.target.transposed else thin
        coefficient = term.coefficient * adapter.scale
        if up.shape[0] < down.shape[1]:
            up = up * coefficient
        else:
            down = down * coefficient
        ups.append(up)
        downs.append(down)
    return _View(
        *rows,
        up=_joined(ups, dim=1),
        down=_joined(downs, dim=0),
        dense=tuple(dense),
    )


def _joined(factors: list[Tensor], dim: int) -> Tensor | None:
    if len(factors) < 2:
        return factors[0] if factors else None
    return torch.cat(factors, dim=dim)


def _dense(term: Term, adapter: Adapter) -> Tensor:
    (first, *_) = adapter.tensors()
    delta = adapter.delta(first.new_empty(()).expand(term.target.shape)) * term.coefficient
    if term.target.transposed:
        delta = delta.t()
    return delta.reshape(delta.shape[0], -1)


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
        delta = update.delta(start, start + rows.shape[0], math.prod(rows.shape[1:]))
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
