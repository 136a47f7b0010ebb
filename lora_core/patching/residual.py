"""The undo rung ``residual``: take the delta off again, and put the words it gets wrong."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..stack import Terms
from .checksum import Checksum
from .exceptions import Exceptions, bits_of, exceptions_of, put_exceptions
from .fused import FusedUpdate, add_rounded, as_matrix, row_chunks
from .products import cpu_threads
from .undo import Fuse


@dataclass(frozen=True)
class _MergedChunk:
    """A chunk that carries ``terms``, and the exceptions that lead back to its base."""

    terms: Terms
    exceptions: Exceptions


@dataclass
class ResidualUndo:
    """The delta itself, computed again, and the words where taking it off is not exact.

    ``chunks`` maps a chunk's first row to what it carries; a chunk that is absent holds its base.
    ``in_flight`` is the write-ahead: the base rows of the chunk that is being written. ``threads``
    is the number under which the products were seen to repeat.
    """

    weight: Tensor
    threads: int
    rung: str = "residual"
    terms: Terms = ()
    whole: bool = True
    checksum: Tensor | int | None = None
    chunks: dict[int, _MergedChunk] = field(default_factory=dict)
    in_flight: tuple[int, Tensor] | None = None

    def write(self, terms: Terms, fuse: Fuse) -> Tensor | int | None:
        """See ``Undo.write``."""
        self.whole = False
        self._settle()
        with cpu_threads(self.threads):
            base_sum = self._write_chunks(terms, fuse)
        if self.checksum is not None:
            return base_sum
        if terms:
            self.checksum = base_sum
        return None

    def _settle(self) -> None:
        """Put the chunk that was being written back to its base."""
        if self.in_flight is not None:
            start, base = self.in_flight
            self._put(start, base)
            self.chunks.pop(start, None)
            self.in_flight = None

    def _write_chunks(self, terms: Terms, fuse: Fuse) -> Tensor | int:
        total = Checksum(self.weight.device)
        for start, stop in row_chunks(tuple(self.weight.shape)):
            base = self._base_rows(start, stop, fuse)
            total.update(base)
            values, chunk = _merged(base, terms, fuse(terms), start) if terms else (base, None)
            self.in_flight = (start, base)
            self._put(start, values)
            if chunk is None:
                self.chunks.pop(start, None)
            else:
                self.chunks[start] = chunk
            self.in_flight = None
        return total.value()

    def _put(self, start: int, values: Tensor) -> None:
        rows = self.weight[start : start + values.shape[0]]
        rows.copy_(values.reshape(rows.shape))

    def _base_rows(self, start: int, stop: int, fuse: Fuse) -> Tensor:
        """The base of one chunk, ``(rows, columns)``, a contiguous copy."""
        rows = as_matrix(self.weight[start:stop])
        chunk = self.chunks.get(start)
        if chunk is None:
            return rows.clone(memory_format=torch.contiguous_format)
        base = add_rounded(rows, fuse(chunk.terms).delta(start, stop, rows.shape[1]), -1)
        put_exceptions(bits_of(base), chunk.exceptions)
        return base

    def copied_onto(self, weight: Tensor) -> "ResidualUndo":
        """See ``Undo.copied_onto``."""
        return replace(self, weight=weight, chunks=dict(self.chunks))

    def nbytes(self) -> int:
        """See ``Undo.nbytes``."""
        return sum(chunk.exceptions.nbytes() for chunk in self.chunks.values())


def _merged(
    base: Tensor, terms: Terms, update: FusedUpdate, start: int
) -> tuple[Tensor, _MergedChunk]:
    delta = update.delta(start, start + base.shape[0], base.shape[1])
    merged = add_rounded(base, delta, 1)
    return merged, _MergedChunk(terms, exceptions_of(base, merged, delta))
