"""The ledger: what was merged into a model's own weights, and the proof that it can be undone."""

import os
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import LoraError, UnknownChoiceError, UnusableModelError
from ..stack import EMPTY_PLAN, Plan, Term, Terms
from .fused import MERGEABLE_DTYPES, FusedUpdate, fuse, row_chunks
from .undo import BaseFile, FileUndo, FullUndo, GemmEnvironment, ResidualUndo, Undo

UndoChoice = Literal["auto", "full", "file", "residual"]
UNDO_CHOICES: tuple[UndoChoice, ...] = ("auto", "full", "file", "residual")
_SCALED_FP8_MARKS = ("scale_weight", "weight_scale", "comfy_quant")
_KEEP_FREE = 0.1  # share of a device's memory that `auto` leaves free


class MergeLedger:
    """Merges plans into weights in place, on the weights' own device, and undoes them exactly.

    A call of ``apply`` sets what the model carries: it merges into a clean base, changes what was
    merged, or (an empty plan) un-merges. Only storages whose terms differ are touched. When it is
    interrupted at any point, by any exception, the model is brought back to the state before; if
    that is interrupted too, the next call does it first.

    Args:
        weights: Name to live tensor (parameter or buffer), as in the model's state dict. They are
            written in place and stay on their devices.
        undo: ``"full"`` keeps a copy on the weight's device; ``"file"`` reads the checkpoint again
            (0 bytes); ``"residual"`` keeps the words where taking the delta off is not exact (a
            few per cent to a fifth of a copy, slower); ``"auto"`` takes ``file`` where ``base_files``
            has the storage and it matches, else ``full`` where it fits, else ``residual``.
        base_files: Storage name to the place its base can be read again.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        undo: UndoChoice = "auto",
        base_files: Mapping[str, BaseFile] | None = None,
    ):
        if undo not in UNDO_CHOICES:
            raise UnknownChoiceError("undo rung", undo, UNDO_CHOICES)
        self._weights = weights
        self._undo = undo
        self._base_files = base_files or {}
        self._records: dict[str, Undo] = {}
        self._adapters: dict[object, Adapter] = {}
        self._probed: dict[object, bool] = {}
        self._before: Mapping[str, Terms] | None = None
        self._unusable: str | None = None

    @property
    def applied(self) -> Mapping[str, Terms]:
        """Storage name to the terms it carries."""
        return {key: record.terms for key, record in self._records.items() if record.terms}

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
            LoraError: a weight's dtype cannot carry a merge, two weights share memory, or a factor
                cannot be read; the model is as before.
            UnusableModelError: the base could not be proved restored.
        """
        self._refuse_unusable()
        with torch.inference_mode():
            self._recover()
            changed = self._changed(plan.terms)
            self._check_weights(changed)
            self._load_adapters(changed)
            self._before = {key: self._terms(key) for key in changed}
            try:
                for key, terms in changed.items():
                    self._rewrite(key, terms)
                self._before = None
            except BaseException:
                self._recover()
                raise
            self._prune()
        return tuple(changed)

    def unmerge(self) -> tuple[str, ...]:
        """Bring the base back: ``apply`` of an empty plan."""
        return self.apply(EMPTY_PLAN)

    def recover(self) -> None:
        """Finish the way back from an interrupted call; does nothing when there was none."""
        self._refuse_unusable()
        with torch.inference_mode():
            self._recover()

    def _refuse_unusable(self) -> None:
        if self._unusable is not None:
            raise UnusableModelError(
                "This model's base could not be restored; it must not be used.",
                {"Weight": self._unusable},
                "load the model again from its file.",
            )

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
        for key, terms in changed.items():
            if terms:
                check_mergeable(key, self._weight(key).dtype, self._weights)
        refuse_shared_memory({key: self._weight(key) for key in changed})

    def _weight(self, key: str) -> Tensor:
        weight = self._weights.get(key)
        if weight is None:
            raise LoraError(
                f"The model has no weight {key}.",
                {"Weights": len(self._weights)},
                "plan the stack with the table of this model.",
            )
        return weight.detach()

    def _load_adapters(self, changed: Mapping[str, Terms]) -> None:
        """Read and upload the factors once, before any weight is written."""
        for key, terms in changed.items():
            device = self._weight(key).device
            for term in terms:
                place = (term.source, device)
                if place not in self._adapters:
                    self._adapters[place] = term.lora.adapter(term.module, term.part).to(device)

    def _fuse(self, key: str) -> "_Fuser":
        weight = self._weight(key)
        return _Fuser(tuple(weight.shape), weight.device, self._adapters)

    def _rewrite(self, key: str, terms: Terms) -> None:
        record = self._records.get(key)
        if record is None:
            if not terms:
                return
            record = self._new_record(key, terms)
            self._records[key] = record
        restored = record.write(terms, self._fuse(key))
        if restored is not None and record.checksum is not None:
            self._verify(key, record, restored)

    def _verify(self, key: str, record: Undo, restored: Tensor) -> None:
        """Compare the restored base with its checksum; read the file again when it differs."""
        if int(restored) == int(_known(record)):
            return
        if record.rung == "residual" and key in self._base_files:
            behind = FileUndo(self._weight(key), self._base_files[key], whole=False)
            again = behind.write((), self._fuse(key))
            if again is not None and int(again) == int(_known(record)):
                return
        self._unusable = key
        self._refuse_unusable()

    def _recover(self) -> None:
        if self._before is None:
            return
        for key, terms in self._before.items():
            record = self._records.get(key)
            if record is None or (record.whole and _same(terms, record.terms)):
                continue
            self._rewrite(key, terms)
        self._before = None
        self._prune()

    def _prune(self) -> None:
        """Forget records of clean storages and factors that no applied term uses."""
        for key in [key for key, record in self._records.items() if not record.terms]:
            del self._records[key]
        used = {
            (term.source, self._weight(key).device)
            for key, record in self._records.items()
            for term in record.terms
        }
        for place in [place for place in self._adapters if place not in used]:
            del self._adapters[place]

    def _new_record(self, key: str, terms: Terms) -> Undo:
        weight = self._weight(key)
        base = self._base_files.get(key)
        if self._undo in ("auto", "file") and base is not None:
            record = FileUndo(weight, base)
            if record.prove():
                return record
        if self._undo == "file":
            raise LoraError(
                f"{key}: the undo rung 'file' cannot be proved.",
                {"Checkpoint": "does not hold this weight's bits" if base else "not known"},
                "use undo 'auto', which keeps a copy where the file does not match.",
            )
        if self._undo == "residual" or (self._undo == "auto" and not _fits(weight)):
            environment = GemmEnvironment.current()
            if self._repeats(key, terms):
                return ResidualUndo(weight, environment)
        return FullUndo(weight, torch.empty_like(weight, memory_format=torch.contiguous_format))

    def _repeats(self, key: str, terms: Terms) -> bool:
        """Whether the device gives the delta's bits twice; asked once per shape and rank."""
        weight = self._weight(key)
        update = self._fuse(key)(terms)
        ranks = tuple(view.up.shape[1] if view.up is not None else 0 for view in update.views)
        question = (tuple(weight.shape), ranks, weight.device, GemmEnvironment.current())
        if question not in self._probed:
            start, stop = next(row_chunks(tuple(weight.shape)))
            columns = weight.numel() // weight.shape[0]
            first = update.delta(start, stop, columns).view(torch.int32)
            second = update.delta(start, stop, columns).view(torch.int32)
            self._probed[question] = bool(torch.equal(first, second))
        return self._probed[question]


class _Fuser:
    """Builds each update of one storage once."""

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, adapters: Mapping[object, Adapter]
    ):
        self._shape, self._device, self._adapters = shape, device, adapters
        self._built: dict[int, tuple[Terms, FusedUpdate]] = {}

    def __call__(self, terms: Terms) -> FusedUpdate:
        """The update of ``terms``, factors on the storage's device."""
        built = self._built.get(id(terms))
        if built is None:
            built = (terms, fuse(terms, self._shape, self._adapter))
            self._built[id(terms)] = built
        return built[1]

    def _adapter(self, term: Term) -> Adapter:
        return self._adapters[(term.source, self._device)]


def _same(left: Terms, right: Terms) -> bool:
    return len(left) == len(right) and all(
        a.same_as(b) for a, b in zip(left, right, strict=True)
    )


def _known(record: Undo) -> Tensor:
    assert record.checksum is not None  # noqa: S101  for the type checker
    return record.checksum


def check_mergeable(key: str, dtype: torch.dtype, names: Iterable[str]) -> None:
    """Refuse weights whose stored numbers are not their values, or that no merge can round to.

    Raises:
        LoraError: the dtype is not fp32, fp16, bf16 or plain fp8, or the weight is scaled fp8.
    """
    if dtype not in MERGEABLE_DTYPES:
        raise LoraError(
            f"{key}: a LoRA cannot be merged into {dtype}.",
            {"Mergeable": ", ".join(str(known) for known in MERGEABLE_DTYPES)},
            "load the model in one of these, or apply the LoRA unmerged.",
        )
    if dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        stem = key.removesuffix("weight")
        mark = next((m for m in _SCALED_FP8_MARKS if stem + m in names), None)
        if mark is not None or "scaled_fp8" in names:
            raise LoraError(
                f"{key}: merging into scaled fp8 weights is not supported yet.",
                {"Found": stem + mark if mark else "scaled_fp8"},
                "use the fp16 or bf16 checkpoint of this model.",
            )


def refuse_shared_memory(weights: Mapping[str, Tensor]) -> None:
    """Raise when two storages overlap in memory: each would be changed twice.

    Raises:
        LoraError: names the two weights.
    """
    spans = sorted(
        (weight.data_ptr(), weight.data_ptr() + weight.numel() * weight.element_size(), key)
        for key, weight in weights.items()
    )
    for (_, stop, first), (start, _, second) in zip(spans, spans[1:], strict=False):
        if start < stop:
            raise LoraError(
                "Two weights of the model share memory.",
                {"First": first, "Second": second},
                "leave one of them out of the LoRA with a weighting rule.",
            )


def _fits(weight: Tensor) -> bool:
    free = free_bytes(weight.device)
    if free is None:
        return True
    available, total = free
    return weight.numel() * weight.element_size() < available - _KEEP_FREE * total


def free_bytes(device: torch.device) -> tuple[int, int] | None:
    """Free and total memory of a device in bytes, or None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    names = ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if device.type != "cpu" or not all(name in os.sysconf_names for name in names):
        return None
    available, total, page = (os.sysconf(name) for name in names)
    return available * page, total * page
