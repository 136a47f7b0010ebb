"""Which undo rung a storage gets: what is asked for, what can be proved, and what fits."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from ..errors import LoraError, UnknownChoiceError
from .fused import FusedUpdate, row_chunks
from .products import cpu_threads
from .residual import ResidualUndo
from .room import Room
from .undo import BaseFile, FileUndo, FullUndo, Undo

UndoChoice = Literal["auto", "full", "file", "residual"]
UNDO_CHOICES: tuple[UndoChoice, ...] = ("auto", "full", "file", "residual")


class Rungs:
    """Makes the undo records of one model.

    Args:
        undo: ``"full"`` keeps a copy on the weight's device; ``"file"`` reads the checkpoint again
            (0 bytes); ``"residual"`` keeps the words where taking the delta off is not exact (a
            few per cent to a fifth of a copy, slower), a copy where a DoRA or OFT makes the delta
            depend on the base; ``"auto"`` takes ``file`` where
            ``base_files`` has the storage and it matches, else ``full`` where it fits, else
            ``residual``.
        base_files: Storage name to the place its base can be read again.
    """

    def __init__(self, undo: UndoChoice, base_files: Mapping[str, BaseFile]) -> None:
        if undo not in UNDO_CHOICES:
            raise UnknownChoiceError("undo rung", undo, UNDO_CHOICES)
        self._undo = undo
        self._base_files = base_files
        self._probed: dict[object, bool] = {}
        self._room = Room()

    def look_again(self) -> None:
        """Ask the system anew how much memory is free: what was counted may have been freed."""
        self._room = Room()

    def new_record(self, key: str, weight: Tensor, update: Callable[[], FusedUpdate]) -> Undo:
        """A record for a storage that holds its base.

        Args:
            key: Name of the storage.
            weight: The storage.
            update: Gives what is about to be merged; called where a residual is considered.

        Raises:
            LoraError: ``file`` was asked for and cannot be proved.
        """
        base = self._base_files.get(key)
        problem: str | None = "not known"
        if self._undo in ("auto", "file") and base is not None:
            record = FileUndo(weight, base)
            problem = record.problem()
            if problem is None:
                return record
        if self._undo == "file":
            raise LoraError(
                f"{key}: the undo rung 'file' cannot be proved.",
                {"Checkpoint": problem},
                "use undo 'auto', which keeps a copy where the file does not match.",
            )
        if self._undo == "residual" or (self._undo == "auto" and not self._has_room(weight)):
            threads = torch.get_num_threads()
            if self._can_take_off(weight, update(), threads):
                return ResidualUndo(weight, threads)
        return FullUndo.of(weight)

    def still_fits(self, record: Undo, update: FusedUpdate) -> bool:
        """Whether a record made for other terms can lead back from ``update``."""
        if not isinstance(record, ResidualUndo):
            return True
        return self._can_take_off(record.weight, update, record.threads)

    def _has_room(self, weight: Tensor) -> bool:
        return self._room.take(weight.device, weight.numel() * weight.element_size())

    def _can_take_off(self, weight: Tensor, update: FusedUpdate, threads: int) -> bool:
        """Whether the delta can be computed again without the base, to the bit."""
        return not update.depends_on_base and self._repeats(weight, update, threads)

    def _repeats(self, weight: Tensor, update: FusedUpdate, threads: int) -> bool:
        """Whether the device gives the delta's bits twice; asked once per shape and ranks."""
        shape = tuple(weight.shape)
        question = (shape, update.ranks(), weight.device, threads)
        if question not in self._probed:
            start, stop = next(row_chunks(shape))
            columns = weight.numel() // shape[0]
            with cpu_threads(threads):
                first, second = (update.delta(start, stop, columns) for _ in range(2))
            self._probed[question] = torch.equal(first.view(torch.int32), second.view(torch.int32))
        return self._probed[question]
