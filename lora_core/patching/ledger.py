"""The ledger: what was merged into a model's own weights, and the proof that it can be undone."""

from collections.abc import Mapping
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import LoraError, UnusableModelError
from ..stack import EMPTY_PLAN, Plan, Term, Terms
from .checks import check_mergeable, find_weight, refuse_moved, refuse_shared_memory
from .crew import Crew
from .fused import FusedUpdate, fuse
from .products import exact_products
from .rungs import Rungs, UndoChoice
from .undo import BaseFile, FileUndo, FullUndo, Fuse, Undo


class MergeLedger:
    """Merges plans into weights in place, on the weights' own device, and undoes them exactly.

    A call of ``apply`` sets what the model carries: it merges into a clean base, changes what was
    merged, or (an empty plan) un-merges. Only storages whose terms differ are touched. When it is
    interrupted at any point, by any exception, the model is brought back to the state before; if
    that is interrupted too, the next call does it first.

    Args:
        weights: Name to live tensor (parameter or buffer), as in the model's state dict. They are
            written in place and must stay where they are while a plan is merged.
        undo: See ``Rungs``.
        base_files: Storage name to the place its base can be read again.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        undo: UndoChoice = "auto",
        base_files: Mapping[str, BaseFile] | None = None,
    ) -> None:
        self._weights = weights
        self._base_files = base_files or {}
        self._rungs = Rungs(undo, self._base_files)
        self._records: dict[str, Undo] = {}
        self._adapters: dict[object, Adapter] = {}
        self._crew = Crew()
        self._before: Mapping[str, Terms] | None = None
        self._unusable: Mapping[str, object] | None = None

    @property
    def applied(self) -> Mapping[str, Terms]:
        """Storage name to the terms it carries; with a way back unfinished, where it leads."""
        carried = {key: record.terms for key, record in self._records.items()}
        return {key: terms for key, terms in (carried | dict(self._before or {})).items() if terms}

    def rungs(self) -> dict[str, int]:
        """Number of changed storages by undo rung."""
        counts: dict[str, int] = {}
        for record in self._records.values():
            counts[record.rung] = counts.get(record.rung, 0) + 1
        return counts

    def nbytes(self) -> int:
        """Memory held for the undo, in bytes; the factors of the applied LoRAs not included."""
        return sum(record.nbytes() for record in self._records.values())

    def apply(self, plan: Plan) -> tuple[str, ...]:
        """Make the model carry exactly ``plan``.

        Returns:
            The storages that were written.

        Raises:
            LoraError: a weight's dtype cannot carry a merge, two weights share memory, a merged
                weight was moved, or a factor cannot be read; the model is as before.
            UnusableModelError: the base could not be proved restored.
        """
        self._refuse_unusable()
        with torch.inference_mode(), exact_products():
            self._recover()
            changed = self._changed(plan.terms)
            self._check_weights(changed)
            self._rungs.look_again()
            try:
                self._load_adapters(changed)
                self._before = {key: self._terms(key) for key in changed}
                self._rewrite_all(changed)
                self._before = None
            except UnusableModelError:
                raise
            except BaseException:
                self._recover()
                raise
            self._prune()
        return tuple(changed)

    def unmerge(self) -> tuple[str, ...]:
        """Bring the base back: ``apply`` of an empty plan. Reads no LoRA file."""
        return self.apply(EMPTY_PLAN)

    def recover(self) -> None:
        """Finish the way back from an interrupted call; does nothing when there was none.

        Raises:
            LoraError: a merged weight was moved.
            UnusableModelError: the base could not be proved restored.
        """
        self._refuse_unusable()
        with torch.inference_mode(), exact_products():
            self._recover()

    def _refuse_unusable(self) -> None:
        if self._unusable is not None:
            raise _unusable_model(self._unusable)

    def _terms(self, key: str) -> Terms:
        record = self._records.get(key)
        return record.terms if record is not None else ()

    def _changed(self, wanted: Mapping[str, Terms]) -> dict[str, Terms]:
        keys = dict.fromkeys([*self._records, *wanted])
        return {
            key: terms
            for key in keys
            if not _same(terms := tuple(wanted.get(key, ())), self._terms(key))
        }

    def _check_weights(self, changed: Mapping[str, Terms]) -> None:
        weights = {key: self._weight(key) for key in {**self._records, **changed}}
        for key, terms in changed.items():
            if terms:
                check_mergeable(key, weights[key].dtype, self._weights)
        refuse_shared_memory(weights)

    def _weight(self, key: str) -> Tensor:
        return find_weight(key, self._weights)

    def _load_adapters(self, changed: Mapping[str, Terms]) -> None:
        """Read and upload the factors once, before any weight is written."""
        for key, terms in changed.items():
            device = self._weight(key).device
            for term in terms:
                place = (term.source, device)
                if place not in self._adapters:
                    self._adapters[place] = term.lora.adapter(term.module, term.part).to(device)

    def _rewrite_all(self, changed: Mapping[str, Terms]) -> None:
        """Bring storages to their terms; on the CPU one thread each, several at a time."""
        weights = {key: self._weight(key) for key in changed}
        if not all(weight.is_cpu for weight in weights.values()):
            for key, terms in changed.items():
                self._rewrite(key, terms)
            return
        order = sorted(changed, key=lambda key: weights[key].numel(), reverse=True)
        self._crew.run([partial(self._rewrite, key, changed[key]) for key in order])

    def _rewrite(self, key: str, terms: Terms) -> None:
        """Bring one storage to ``terms``, proved, and note it."""
        record = self._records.get(key)
        weight = self._weight(key) if record is None else record.weight
        fuser = _Fuser(tuple(weight.shape), weight.device, self._adapters)
        if record is None:
            record = self._records[key] = self._rungs.new_record(key, weight, lambda: fuser(terms))
        elif terms and not self._rungs.still_fits(record, fuser(terms)):
            self._write(key, record, (), fuser)
            record = self._records[key] = FullUndo.of(weight)
        self._write(key, record, terms, fuser)

    def _write(self, key: str, record: Undo, terms: Terms, fuser: Fuse) -> None:
        if not self._proves(key, record, terms, fuser):
            record = self._records[key] = self._healed(key, record, fuser)
            if terms:
                record.write(terms, fuser)
        record.terms = terms
        record.whole = True

    def _proves(self, key: str, record: Undo, terms: Terms, fuser: Fuse) -> bool:
        """Write ``terms``; whether the base, where it was computed again, has its checksum."""
        try:
            base = record.write(terms, fuser)
        except LoraError as error:  # a base file is gone or changed
            self._give_up(key, error.headline)
        return base is None or record.checksum is None or int(base) == int(record.checksum)

    def _healed(self, key: str, record: Undo, fuser: Fuse) -> Undo:
        """A record of the storage with its base read from the file behind it, proved."""
        base = self._base_files.get(key)
        if base is None or isinstance(record, FileUndo):
            self._give_up(key, "the restored bits do not have the base's checksum")
        healed = FileUndo(record.weight, base, whole=False, checksum=record.checksum)
        if not self._proves(key, healed, (), fuser):
            self._give_up(key, "neither the undo nor the file has the base's checksum")
        healed.whole = True
        return healed

    def _give_up(self, key: str, cause: str) -> NoReturn:
        self._unusable = {"Weight": key, "Cause": cause}
        raise _unusable_model(self._unusable)

    def _recover(self) -> None:
        """Go back to the state before an interrupted call, and drop what that leaves unused."""
        self._crew.stop()
        for key, merged in self._records.items():
            refuse_moved(key, merged.weight, self._weight(key))
        before = self._before or {}
        self._rewrite_all({key: before[key] for key in before if not self._holds(key, before[key])})
        self._before = None
        self._prune()

    def _holds(self, key: str, terms: Terms) -> bool:
        """Whether a storage is at ``terms`` after an interrupted call; one without record is."""
        record = self._records.get(key)
        return record is None or (record.whole and _same(terms, record.terms))

    def _prune(self) -> None:
        """Forget records of clean storages and factors that no applied term uses."""
        for key in [key for key, record in self._records.items() if not record.terms]:
            del self._records[key]
        used = {
            (term.source, record.weight.device)
            for record in self._records.values()
            for term in record.terms
        }
        for place in [place for place in self._adapters if place not in used]:
            del self._adapters[place]


class _Fuser:
    """Builds each update of one storage once."""

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, adapters: Mapping[object, Adapter]
    ) -> None:
        self._shape, self._device, self._adapters = shape, device, adapters
        self._built: dict[int, tuple[Terms, FusedUpdate]] = {}

    def __call__(self, terms: Terms) -> FusedUpdate:
        """The update of ``terms``, factors on the storage's device."""
        built = self._built.get(id(terms))  # the entry keeps its terms, so the id stays theirs
        if built is None:
            built = self._built[id(terms)] = (terms, fuse(terms, self._shape, self._adapter))
        return built[1]

    def _adapter(self, term: Term) -> Adapter:
        return self._adapters[(term.source, self._device)]


def _same(left: Terms, right: Terms) -> bool:
    return len(left) == len(right) and all(a.same_as(b) for a, b in zip(left, right, strict=True))


def _unusable_model(facts: Mapping[str, object]) -> UnusableModelError:
    return UnusableModelError(
        "This model's base could not be restored; it must not be used.",
        facts,
        "load the model again from its file.",
    )
