"""The undo rungs ``full`` and ``file``: a copy of a storage, or the checkpoint it came from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..errors import LoraError
from ..stack import Terms
from .checksum import Checksum
from .fused import FusedUpdate, row_chunks, write_merged

Fuse = Callable[[Terms], FusedUpdate]
"""Builds the fused update of a storage's terms."""


class BaseFile(Protocol):
    """Where a storage's base weight can be read again."""

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of the storage as stored, on the CPU, any float dtype.

        Raises:
            LoraError: the file is not the one that was opened.
            IndexError: the file's tensor has fewer rows.
        """


class Undo(Protocol):
    """One storage's record: what it carries, and the way back to its base.

    ``terms`` is what the storage carries while ``whole`` is true; ``write`` clears ``whole`` before
    it changes anything, and its caller sets both when the write is proved. ``checksum`` is that of
    the base, None until it is known. ``write`` may be interrupted between any two instructions:
    called again, with any terms, it starts from whatever the storage holds.
    """

    rung: str
    weight: Tensor
    terms: Terms
    whole: bool
    checksum: Tensor | int | None

    def write(self, terms: Terms, fuse: Fuse) -> Tensor | int | None:
        """Bring the storage from whatever it holds to ``terms``.

        Returns:
            The checksum of the base that this call restored or computed again, if it did.
        """

    def copied_onto(self, weight: Tensor) -> "Undo":
        """The same record for a copy of what its storage holds; writing there changes not this."""

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
    checksum: Tensor | int | None = None
    saved: int = 0

    @classmethod
    def of(cls, weight: Tensor) -> "FullUndo":
        """A record with room for the copy; nothing is copied yet."""
        return cls(weight, torch.empty_like(weight, memory_format=torch.contiguous_format))

    def write(self, terms: Terms, fuse: Fuse) -> Tensor | int | None:
        """See ``Undo.write``."""
        self.whole = False
        if not terms:
            return self._restore()
        update = fuse(terms).measured(self._base_rows, tuple(self.weight.shape))
        total = Checksum(self.weight.device) if self.checksum is None else None
        for start, stop in row_chunks(tuple(self.weight.shape)):
            if total is not None:  # else the whole copy was made and summed before
                self._save(start, stop, total)
            write_merged(self.weight, self.copy[start:stop], update, start)
        if total is not None:
            self.checksum = total.value()
        return None

    def _base_rows(self, start: int, stop: int) -> Tensor:
        return (self.copy if stop <= self.saved else self.weight)[start:stop]

    def _save(self, start: int, stop: int, total: Checksum) -> None:
        copy = self.copy[start:stop]
        if self.saved < stop:
            total.copy(copy, self.weight[start:stop])
            self.saved = stop
        else:
            total.update(copy)

    def _restore(self) -> Tensor | int:
        total = Checksum(self.weight.device)
        if self.saved == self.weight.shape[0]:
            total.copy(self.weight, self.copy)
        else:
            total.copy(self.weight[: self.saved], self.copy[: self.saved])
            total.update(self.weight[self.saved :])
        return total.value()

    def copied_onto(self, weight: Tensor) -> "FullUndo":
        """See ``Undo.copied_onto``."""
        return replace(self, weight=weight)

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
    checksum: Tensor | int | None = None

    def problem(self) -> str | None:
        """Why the file cannot give the storage back; sets ``checksum`` when it can.

        Reads the file once. Each side is summed where it lies: no weight crosses devices. On a CPU
        too a second sum takes no longer than a comparison.
        """
        here, there = Checksum(self.weight.device), Checksum(torch.device("cpu"))
        for start, stop in row_chunks(tuple(self.weight.shape)):
            try:
                there.update(self._stored_rows(start, stop))
            except LoraError as error:
                return error.headline
            here.update(self.weight[start:stop])
        value = here.value()
        if int(value) != int(there.value()):
            return "it does not hold this weight's bits"
        self.checksum = value
        return None

    def write(self, terms: Terms, fuse: Fuse) -> Tensor | int | None:
        """See ``Undo.write``."""
        untouched = self.whole and not self.terms
        self.whole = False

        def base_rows(start: int, stop: int) -> Tensor:
            if untouched:
                return self.weight[start:stop]
            return self._stored_rows(start, stop).to(self.weight.device)

        shape = tuple(self.weight.shape)
        update = fuse(terms).measured(base_rows, shape) if terms else None
        total = Checksum(self.weight.device)
        for start, stop in row_chunks(shape):
            base = base_rows(start, stop)
            if update is None:
                total.copy(self.weight[start:stop], base)
                continue
            if not untouched:
                total.update(base)
            write_merged(self.weight, base, update, start)
        return None if untouched else total.value()

    def _stored_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the file, cast as loaded, on the CPU; every failure is a LoraError."""
        rows = self.weight[start:stop]
        try:
            stored = self.base.read_rows(start, stop)
        except (LookupError, OSError) as error:
            raise LoraError(f"it cannot be read: {error}") from error
        if stored.shape != rows.shape:
            raise LoraError("it holds a weight of another shape")
        return stored.to(rows.dtype)

    def copied_onto(self, weight: Tensor) -> "FileUndo":
        """See ``Undo.copied_onto``."""
        return replace(self, weight=weight)

    def nbytes(self) -> int:
        """See ``Undo.nbytes``."""
        return 0
