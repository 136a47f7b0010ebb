"""The undo rungs: what a ledger keeps of a storage so that its base comes back bit for bit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..stack import Terms
from .checksum import Checksum
from .fused import FusedUpdate, merged_rows, rounded, row_chunks

Fuse = Callable[[Terms], FusedUpdate]
"""Builds the fused update of a storage's terms."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_BLOCK = 1 << 16
_BITMAP_FROM = 1 / 16  # 16 bits an index against 1 bit a weight


class BaseFile(Protocol):
    """Where a storage's base weight can be read again."""

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the storage as stored, on the CPU, any float dtype.

        Raises:
            DamagedFileError: the file is not the one that was opened.
        """


def rows_of(weight: Tensor, start: int, stop: int) -> Tensor:
    """Rows of a storage, a view."""
    return weight[start:stop]


def _matrix(rows: Tensor) -> Tensor:
    return rows.reshape(rows.shape[0], -1)


def write_rows(weight: Tensor, start: int, values: Tensor) -> None:
    """Overwrite rows from ``start`` on; ``values`` is ``(rows, columns)`` of the same dtype."""
    rows = weight[start : start + values.shape[0]]
    rows.copy_(values.reshape(rows.shape))


class Undo(Protocol):
    """One storage's record: its terms now, and the way back to its base.

    ``terms`` is what the storage carries; it is only true while ``whole`` is. ``checksum`` is that
    of the base, None until it is known. Every method may be interrupted between any two lines:
    ``settle`` then ``write`` of the former terms lead back.
    """

    rung: str
    terms: Terms
    whole: bool
    checksum: Tensor | None

    def write(self, terms: Terms, fuse: Fuse) -> Tensor | None:
        """Bring the storage from whatever it holds to ``terms``.

        Returns the checksum of what was written when ``terms`` is empty, else None.
        """

    def nbytes(self) -> int:
        """Memory the record holds, on the weight's device."""


@dataclass
class FullUndo:
    """A copy of the storage, on its own device.

    Rows are copied just before they are first overwritten; ``saved`` counts them.
    """

    weight: Tensor
    copy: Tensor
    rung: str = "full"
    terms: Terms = ()
    whole: bool = True
    checksum: Tensor | None = None
    saved: int = 0

    def write(self, terms: Terms, fuse: Fuse) -> Tensor | None:
        """See ``Undo.write``."""
        self.whole = False
        if not terms:
            return self._restore()
        update = fuse(terms)
        total = Checksum(self.weight.device) if self.checksum is None else None
        for start, stop in row_chunks(tuple(self.weight.shape)):
            rows, copy = rows_of(self.weight, start, stop), rows_of(self.copy, start, stop)
            if self.saved < stop:
                copy.copy_(rows)
                self.saved = stop
            if total is not None:
                total.update(copy)
            write_rows(
                self.weight, start, merged_rows(_matrix(copy), update, start, rows.dtype)
            )
        if total is not None:
            self.checksum = total.value()
        self.terms = terms
        self.whole = True
        return None

    def _restore(self) -> Tensor | None:
        total = Checksum(self.weight.device)
        for start, stop in row_chunks(tuple(self.weight.shape)):
            rows = rows_of(self.weight, start, stop)
            if stop <= self.saved:
                rows.copy_(rows_of(self.copy, start, stop))
            total.update(rows)
        self.terms = ()
        self.whole = True
        return total.value()

    def nbytes(self) -> int:
        """See ``Undo.nbytes``."""
        return self.copy.numel() * self.copy.element_size()


@dataclass
class FileUndo:
    """The checkpoint file, proved to hold this storage's bits before they were overwritten."""

    weight: Tensor
    base: BaseFile
    rung: str = "file"
    terms: Terms = ()
    whole: bool = True
    checksum: Tensor | None = None

    def prove(self) -> bool:
        """Whether the file holds the storage's bits; sets ``checksum`` when it does."""
        here, there = Checksum(self.weight.device), Checksum(torch.device("cpu"))
        for start, stop in row_chunks(tuple(self.weight.shape)):
            stored = self.base.read_rows(start, stop)
            if stored.shape != self.weight[start:stop].shape:
                return False
            here.update(rows_of(self.weight, start, stop))
            there.update(stored.to(self.weight.dtype))
        value = here.value()
        if int(value) != int(there.value()):
            return False
        self.checksum = value
        return True

    def write(self, terms: Terms, fuse: Fuse) -> Tensor | None:
        """See ``Undo.write``."""
        untouched = self.whole and not self.terms
        self.whole = False
        total = None if terms else Checksum(self.weight.device)
        update = fuse(terms) if terms else None
        for start, stop in row_chunks(tuple(self.weight.shape)):
            rows = rows_of(self.weight, start, stop)
            base = rows if untouched else self._base_rows(start, stop)
            if update is not None:
                values = merged_rows(_matrix(base), update, start, rows.dtype)
                write_rows(self.weight, start, values)
            elif total is not None:
                rows.copy_(base)
                total.update(rows)
        self.terms = terms
        self.whole = True
        return None if total is None else total.value()

    def _base_rows(self, start: int, stop: int) -> Tensor:
        stored = self.base.read_rows(start, stop)
        return stored.to(self.weight.dtype).to(self.weight.device)

    def nbytes(self) -> int:
        """See ``Undo.nbytes``."""
        return 0


@dataclass(frozen=True)
class Exceptions:
    """Original words where ``round(merged - delta)`` is not the base.

    Below one exception in 16 ``where`` holds 16-bit offsets in blocks of 65,536 elements, with
    ``counts`` per block; from there on a bitmap, and ``counts`` is None.
    """

    words: Tensor
    where: Tensor
    counts: Tensor | None

    def nbytes(self) -> int:
        """Memory of the three tensors."""
        tensors = (self.words, self.where, self.counts)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def find_exceptions(base_bits: Tensor, back_bits: Tensor) -> Exceptions:
    """Compare two flat integer views of the same length; record ``base_bits`` where they differ."""
    differs = torch.bitwise_xor(base_bits, back_bits)
    index = differs.nonzero().squeeze(1)
    words = base_bits[index]
    length = base_bits.numel()
    if index.numel() >= length * _BITMAP_FROM:
        return Exceptions(words, _packed(differs != 0), None)
    blocks = torch.arange(0, -(-length // _BLOCK) + 1, device=index.device) * _BLOCK
    counts = torch.searchsorted(index, blocks).diff().to(torch.int32)
    return Exceptions(words, (index & (_BLOCK - 1)).to(torch.uint16).view(torch.int16), counts)


def put_exceptions(bits: Tensor, exceptions: Exceptions) -> None:
    """Write the recorded words into the flat integer view ``bits``."""
    if exceptions.counts is None:
        mask = _unpacked(exceptions.where, bits.numel())
        bits.masked_scatter_(mask, exceptions.words)
        return
    blocks = torch.arange(exceptions.counts.numel(), device=bits.device) * _BLOCK
    index = torch.repeat_interleave(blocks, exceptions.counts.to(torch.int64))
    bits[index + (exceptions.where.to(torch.int64) & (_BLOCK - 1))] = exceptions.words


def _packed(mask: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.numel() % 8))
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (padded.view(-1, 8) * weights).sum(dim=1, dtype=torch.uint8)


def _unpacked(packed: Tensor, length: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(1) >> shifts) & 1).view(-1)[:length].to(torch.bool)


@dataclass(frozen=True)
class _MergedChunk:
    """A chunk that carries ``terms``, and the exceptions that lead back to its base."""

    terms: Terms
    exceptions: Exceptions


@dataclass(frozen=True)
class GemmEnvironment:
    """Settings that can change the bits of a float32 product on one device."""

    threads: int
    precision: str

    @classmethod
    def current(cls) -> "GemmEnvironment":
        """The settings in force."""
        return cls(torch.get_num_threads(), torch.get_float32_matmul_precision())

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run the block under these settings, then put the others back."""
        found = GemmEnvironment.current()
        if found == self:
            yield
            return
        try:
            torch.set_num_threads(self.threads)
            torch.set_float32_matmul_precision(self.precision)
            yield
        finally:
            torch.set_num_threads(found.threads)
            torch.set_float32_matmul_precision(found.precision)


@dataclass
class ResidualUndo:
    """The delta itself, computed again, and the words where taking it off is not exact.

    ``chunks`` maps a chunk's first row to what it carries; a chunk that is absent holds its base.
    ``in_flight`` is the write-ahead: the base rows of the chunk that is being written.
    """

    weight: Tensor
    environment: GemmEnvironment
    rung: str = "residual"
    terms: Terms = ()
    whole: bool = True
    checksum: Tensor | None = None
    chunks: dict[int, _MergedChunk] = field(default_factory=dict)
    in_flight: tuple[int, Tensor] | None = None

    def write(self, terms: Terms, fuse: Fuse) -> Tensor | None:
        """See ``Undo.write``."""
        self._settle()
        self.whole = False
        with self.environment.active():
            written = self._write_chunks(terms, fuse)
        self.terms = terms
        self.whole = True
        return written

    def _settle(self) -> None:
        """Put the chunk that was being written back to its base."""
        if self.in_flight is not None:
            start, base = self.in_flight
            write_rows(self.weight, start, base)
            self.chunks.pop(start, None)
            self.in_flight = None

    def _write_chunks(self, terms: Terms, fuse: Fuse) -> Tensor | None:
        total = Checksum(self.weight.device) if self.checksum is None or not terms else None
        for start, stop in row_chunks(tuple(self.weight.shape)):
            base = self._base_rows(start, stop, fuse)
            if total is not None:
                total.update(base)
            if terms:
                values, chunk = _merge_chunk(base, terms, fuse(terms), start)
                self.in_flight = (start, base)
                write_rows(self.weight, start, values)
                self.chunks[start] = chunk
            else:
                self.in_flight = (start, base)
                write_rows(self.weight, start, base)
                self.chunks.pop(start, None)
            self.in_flight = None
        if total is None:
            return None
        if terms:
            self.checksum = total.value()
            return None
        return total.value()

    def _base_rows(self, start: int, stop: int, fuse: Fuse) -> Tensor:
        """The base of one chunk, ``(rows, columns)``, a copy."""
        rows = _matrix(rows_of(self.weight, start, stop))
        chunk = self.chunks.get(start)
        if chunk is None:
            return rows.clone()
        delta = fuse(chunk.terms).delta(start, stop, rows.shape[1])
        base = rounded(rows.float().sub_(delta), rows.dtype)
        put_exceptions(_bits(base), chunk.exceptions)
        return base

    def nbytes(self) -> int:
        """See ``Undo.nbytes``."""
        return sum(chunk.exceptions.nbytes() for chunk in self.chunks.values())


def _merge_chunk(
    base: Tensor, terms: Terms, update: FusedUpdate, start: int
) -> tuple[Tensor, _MergedChunk]:
    delta = update.delta(start, start + base.shape[0], base.shape[1])
    merged = rounded(base + delta if base.dtype == delta.dtype else base.float().add_(delta), base.dtype)
    back = rounded(merged.to(torch.float32, copy=True).sub_(delta), base.dtype)
    return merged, _MergedChunk(terms, find_exceptions(_bits(base), _bits(back)))


def _bits(rows: Tensor) -> Tensor:
    """A flat integer view of contiguous rows."""
    return rows.view(-1).view(_BITS[rows.element_size()])
