"""The checkpoint file behind a MODEL or CLIP, and where in it each weight lies."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...lora_core.errors import LoraError
from ...lora_core.files.safetensors_file import SafetensorsFile, open_safetensors
from ...lora_core.models.table import table_from_shapes
from ...lora_core.models.target import Target
from ...lora_core.patching.base_file import CheckpointRows
from ...lora_core.stack import Plan
from .lineage import BAKED

_INIT = "cached_patcher_init"
_MEMORY_PREFIX = "diffusion_model."
_FILE_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")


@dataclass(frozen=True)
class BaseCheckpoint:
    """Where base weights can be read again.

    Attributes:
        rows: Storage name in ComfyUI's memory to its place in a file. A place is a guess by name
            and shape: the undo rung proves by checksum that it holds the weight's bits.
        problem: Why there is no file at all, or None.
    """

    rows: Mapping[str, CheckpointRows]
    problem: str | None = None


def base_checkpoint(patchers: Iterable[Any], plan: Plan) -> BaseCheckpoint:
    """Find the weights that a plan changes in the files that the patchers were loaded from."""
    rows: dict[str, CheckpointRows] = {}
    problems = []
    for patcher in patchers:
        try:
            for file in _opened(getattr(patcher, _INIT, None)):
                rows |= _rows(file, plan)
        except LoraError as error:
            problems.append(error.headline)
    return BaseCheckpoint(rows, None if rows else next(iter(problems), "no weight of it is known"))


def checkpoint_files(patcher: Any) -> Iterator[SafetensorsFile]:
    """The safetensors files behind a patcher, baked or not, as far as they are known."""
    try:
        yield from _opened(loaded_from(patcher))
    except LoraError:
        return


def loaded_from(patcher: Any) -> Any:
    """``cached_patcher_init`` of a patcher, or of the base it was baked on; None if unknown."""
    baked = patcher.get_attachment(BAKED)
    return baked.loaded_from if baked is not None else getattr(patcher, _INIT, None)


def _opened(init: Any) -> Iterator[SafetensorsFile]:
    """Open what a loader says it read.

    ComfyUI: loaders leave ``(factory, args[, index])`` in ``cached_patcher_init``, the path or the
    paths first among ``args`` (0.30; 0.3.64 has no such field).
    """
    first = init[1][0] if init is not None and init[1] else None
    paths = [first] if isinstance(first, str) else first
    if not isinstance(paths, Sequence) or not all(isinstance(path, str) for path in paths):
        raise LoraError("the node that loaded the model does not say which file it read")
    for path in paths:
        yield open_safetensors(Path(path))


def _rows(file: SafetensorsFile, plan: Plan) -> dict[str, CheckpointRows]:
    by_name = _targets_by_name(file)
    found = {}
    for key, terms in plan.terms.items():
        stored = by_name.get((terms[0].target.component, terms[0].target.canonical))
        if stored is not None and len(terms[0].target.shape) == len(stored.shape):
            start = stored.rows[0] if stored.rows else 0
            found[key] = CheckpointRows(file, stored.target_key, start)
        elif key.startswith(_MEMORY_PREFIX):
            names = (prefix + key.removeprefix(_MEMORY_PREFIX) for prefix in _FILE_PREFIXES)
            name = next((name for name in names if name in file.tensors), None)
            if name is not None:
                found[key] = CheckpointRows(file, name)
    return found


def _targets_by_name(file: SafetensorsFile) -> dict[tuple[str, str], Target]:
    """The file's weights by component and canonical name; none for other architectures."""
    try:
        table = table_from_shapes({key: info.shape for key, info in file.tensors.items()})
    except LoraError:
        return {}
    return {(t.component, t.canonical): t for t in table.targets if not t.transposed}
