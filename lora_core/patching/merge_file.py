"""Merging into a checkpoint file: read rows, add, round, write; never the whole file in memory."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..adapters import Adapter
from ..errors import LoraError, UnsupportedFormatError
from ..files.safetensors_file import SafetensorsFile
from ..files.tensor_file import TensorFile
from ..files.write import SafetensorsWriter
from ..stack import Plan, Term, Terms
from .checks import check_mergeable
from .fused import fuse, merged_rows, row_chunks
from .products import cpu_threads, exact_products

MERGED_KEY = "lora_workbench.merged"
"""Header entry of a merged checkpoint: a JSON list, one object per merge."""

_HASH_MARKS = ("sshs_", "modelspec.hash_")

Progress = Callable[[int], object]
"""Called with the number of bytes written since the last call, from the caller's thread."""


def merge_checkpoint(
    checkpoint: TensorFile,
    plan: Plan,
    output: str | Path,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write a checkpoint with a plan merged into it; the input is only read.

    The bits are those that ``MergeLedger`` writes in memory for the same plan, on the CPU.
    Tensors without a term are copied byte for byte. Memory is bounded by a few rows and the
    factors of one storage for each core.

    Args:
        checkpoint: A safetensors file.
        plan: Made with the table of this checkpoint.
        output: Gets the same tensors in the same order; written under a temporary name first.
        metadata: The header of the output; see ``merged_metadata``.
        overwrite: Whether an existing file is replaced. The checkpoint and the LoRAs never are.
        progress: Is told about every piece written.

    Returns:
        The names of the tensors that were changed.

    Raises:
        UnsupportedFormatError: the checkpoint is not a safetensors file.
        LoraError: the output exists or is an input, a weight's dtype cannot carry a merge, or a
            file changed meanwhile; nothing is written.
    """
    source = _streamable(checkpoint)
    for key in plan.terms:
        check_mergeable(key, source.tensors[key].dtype, source.tensors)
    refuse_inputs(Path(output), [source, *_lora_files(plan)])
    order = sorted(source.tensors, key=lambda key: source.tensors[key].start)
    layout = {key: (source.tensors[key].dtype, source.tensors[key].shape) for key in order}
    with SafetensorsWriter(output, layout, metadata, overwrite) as writer:
        for nbytes in _written(source, writer, plan, order):
            if progress is not None:
                progress(nbytes)
    return tuple(key for key in order if key in plan.terms)


def merged_metadata(
    header: Mapping[str, str], base_name: str, loras: Iterable[Mapping[str, Any]]
) -> dict[str, str]:
    """The header of a merged checkpoint: the base's, with what was merged.

    Hashes of the base's tensors hold no longer: they move into the entry, where they tell which
    base it was.

    Args:
        header: The base's.
        base_name: File name of the base.
        loras: What was merged, JSON objects.
    """
    hashes = {key: value for key, value in header.items() if key.startswith(_HASH_MARKS)}
    entry: dict[str, Any] = {"base": base_name, "base_hashes": hashes, "loras": list(loras)}
    kept = {key: value for key, value in header.items() if key not in hashes}
    return kept | {MERGED_KEY: json.dumps([*_earlier_merges(header), entry])}


def _earlier_merges(header: Mapping[str, str]) -> list[Any]:
    try:
        earlier = json.loads(header.get(MERGED_KEY, "[]"))
    except (ValueError, RecursionError):
        return []
    return earlier if isinstance(earlier, list) else []


def _streamable(checkpoint: TensorFile) -> SafetensorsFile:
    if isinstance(checkpoint, SafetensorsFile):
        return checkpoint
    raise UnsupportedFormatError(
        f"{checkpoint.path.name}: only a safetensors checkpoint can be merged into.",
        {"File": checkpoint.path},
        "convert the checkpoint to .safetensors first.",
    )


def _lora_files(plan: Plan) -> list[TensorFile]:
    return [binding.lora.file for binding in plan.bindings]


def refuse_inputs(output: Path, inputs: Iterable[TensorFile]) -> None:
    """Raise LoraError when the output is, by any path, one of the files that are read."""
    for file in inputs:
        if output.exists() and file.path.exists() and output.samefile(file.path):
            raise LoraError(
                f"{output.name}: the output is one of the inputs.",
                {"Output": output, "Input": file.path},
                "choose another output; the way back from a merged file is its base.",
            )


def _written(
    source: SafetensorsFile, writer: SafetensorsWriter, plan: Plan, order: Sequence[str]
) -> Iterator[int]:
    """Write every tensor; yield the size of each in turn.

    One thread per core, each with tensors of its own and torch on that thread alone: reading and
    writing overlap with arithmetic, and no thread waits for another. With torch's own threads a
    merge took 1.5 s on idle cores and 25 s beside another busy process: 3,000 operations that
    each waited until both cores were free.
    """
    workers = torch.get_num_threads() if hasattr(os, "pwrite") else 1
    with exact_products(), cpu_threads(1):
        pool = ThreadPoolExecutor(workers)
        try:
            tasks = [
                pool.submit(_write_tensor, source, writer, key, plan.terms.get(key, ()))
                for key in order
            ]
            for task in tasks:
                yield task.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_tensor(
    source: SafetensorsFile, writer: SafetensorsWriter, key: str, terms: Terms
) -> int:
    info = source.tensors[key]
    if not terms:
        writer.copy_range(source, info.start, key, info.nbytes)
        return info.nbytes
    with torch.inference_mode():
        update = fuse(terms, info.shape, _adapter)
        update = update.measured(partial(source.read_rows, key), info.shape)
        row_bytes = info.nbytes // info.shape[0]
        for start, stop in row_chunks(info.shape):
            rows = source.read_rows(key, start, stop).reshape(stop - start, -1)
            merged = merged_rows(rows, update, start, info.dtype)
            writer.write(key, merged, start * row_bytes)
    return info.nbytes


def _adapter(term: Term) -> Adapter:
    return term.lora.adapter(term.module, term.part)
