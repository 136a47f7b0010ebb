"""LoRA files and models as far as their headers tell, each read once until it changes."""

from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from ...lora_core.errors import DamagedFileError, LoraError
from ...lora_core.family import detect_lora_family, known_tables, match_bases
from ...lora_core.files.safetensors_file import open_safetensors
from ...lora_core.lora import load_lora
from ...lora_core.models import ModelTable, table_from_shapes
from .blocks import NO_BLOCKS, KnownBlocks, blocks_json, blocks_of_file
from .error_json import error_json
from .facts import KnownLora, facts_json
from .file_cache import FileCache
from .norms import check_size, norms_json
from .verdict import Verdict, unusable, verdict_alone, verdict_on_model, verdict_unchecked

_LORAS_KEPT, _MODELS_KEPT, _NORMS_KEPT = 32, 4, 256
_CHECKED = "Only SD 1.5, SD 2 and SDXL models in .safetensors files are checked before a run."
_BROKEN = "The model's own file is damaged or incomplete."


class Library:
    """Answers about files by path; safe among threads, nothing is read before a question."""

    def __init__(self) -> None:
        self._loras = FileCache(self._known, _LORAS_KEPT)
        self._models = FileCache(_table_of, _MODELS_KEPT)
        self._blocks = FileCache(blocks_of_file, _MODELS_KEPT)
        self._base_blocks: dict[str, KnownBlocks] = {}
        self._norms = FileCache(self._norms_of, _NORMS_KEPT)
        self._one_at_a_time = Lock()  # norms read whole files

    def facts(self, name: str, path: Path) -> dict[str, Any]:
        """The facts of one LoRA file.

        Raises:
            LoraError: the file cannot be read as a file of tensors.
        """
        return facts_json(name, path, self._loras.get(path))

    def verdict(self, path: Path, model: Path | None = None) -> Verdict:
        """Whether a LoRA suits a model.

        Args:
            path: Of the LoRA.
            model: A checkpoint or diffusion model; None when it is not known.
        """
        known = self._lora(path)
        if isinstance(known, Verdict):
            return known
        if model is None or known.problem is not None:
            return verdict_alone(known)
        table = self._models.get(model)
        if isinstance(table, str):
            return verdict_unchecked(known, table)
        return verdict_on_model(known, table)

    def verdict_without_model(self, path: Path, reason: str) -> Verdict:
        """What is known of a LoRA for a model that is not there."""
        known = self._lora(path)
        return known if isinstance(known, Verdict) else verdict_unchecked(known, reason)

    def blocks(self, model: Path | None, path: Path | None, weighting: str) -> dict[str, Any]:
        """What a weighting can name, and what this one does there; see ``blocks_json``.

        ``of`` says whose blocks they are: ``"model"``, else ``"base"``, the one that the LoRA was
        made for, else null.

        Args:
            model: A checkpoint or diffusion model; None when it is not known.
            path: Of the LoRA; None when it is not there.
            weighting: In any of its forms.
        """
        known = self._blocks.get(model) if model is not None else NO_BLOCKS
        of = "model"
        if known is NO_BLOCKS and path is not None:
            known, of = self._blocks_of_base(path), "base"
        is_known = known is not NO_BLOCKS
        told = {"of": of if is_known else None, "family": known.family}
        return {**told, **blocks_json(known.blocks, weighting)}

    def norms(self, path: Path) -> dict[str, Any]:
        """See ``norms_json``; reads every factor of the file, once until it changes.

        Raises:
            LoraError: the file is too large, or there is nothing to show.
        """
        check_size(path)
        return self._norms.get(path)

    def _norms_of(self, path: Path) -> dict[str, Any]:
        known = self._loras.get(path)
        with self._one_at_a_time:
            return norms_json(known, self._tables)

    def _blocks_of_base(self, path: Path) -> KnownBlocks:
        """Those of the base that a LoRA was made for."""
        known = self._lora(path)
        if isinstance(known, Verdict) or known.family not in self._tables:
            return NO_BLOCKS
        if known.family not in self._base_blocks:
            self._base_blocks[known.family] = KnownBlocks.of_table(self._tables[known.family])
        return self._base_blocks[known.family]

    def _lora(self, path: Path) -> KnownLora | Verdict:
        """A file as far as its header tells, or why it is of no use."""
        try:
            return self._loras.get(path)
        except LoraError as error:
            return unusable(error_json(error, [path.parent]))

    @cached_property
    def _tables(self) -> dict[str, ModelTable]:
        return known_tables()

    def _known(self, path: Path) -> KnownLora:
        lora = load_lora(path)
        matches = match_bases(lora, self._tables)
        return KnownLora(lora, matches, detect_lora_family(lora, matches))


def _table_of(path: Path) -> ModelTable | str:
    """The names of a model's weights, or why they cannot be told."""
    if path.suffix.lower() != ".safetensors":
        return _CHECKED
    try:
        tensors = open_safetensors(path).tensors
        return table_from_shapes({name: info.shape for name, info in tensors.items()})
    except DamagedFileError:
        return _BROKEN
    except LoraError:
        return _CHECKED
