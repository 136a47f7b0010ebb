"""Save Merged Model: the parts as one checkpoint file, with what was merged in its header."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...lora_core.errors import LoraError, UnknownChoiceError
from ...lora_core.files.safetensors_file import open_safetensors
from ...lora_core.files.write import write_safetensors
from ...lora_core.patching.merge_file import MERGED_KEY, merged_metadata
from ..merged_entry import described
from ..protocol import Saved
from .checkpoints import ldm_tensors
from .folders import Folders, numbered
from .handles import Clip, Model, Vae
from .parts import Checkpoint

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def saved_model(
    folders: Folders,
    model: Model,
    clip: Clip | None,
    vae: Vae | None,
    filename: str,
    dtype: str,
    workflow: Mapping[str, object],
) -> Saved:
    """See ``Host.save_model``; ``as_loaded`` is the dtype of the UNet in its file."""
    if dtype not in ("as_loaded", *_DTYPES):
        raise UnknownChoiceError("dtype", dtype, ("as_loaded", *_DTYPES))
    place = numbered(folders.output, filename.removesuffix(".safetensors"), 0, 0)
    path = place.folder / place.name(0, ".safetensors")
    parts = Checkpoint(
        model.loaded(), clip.loaded() if clip else None, vae.part if vae is not None else None
    )
    base = _base_file(model)
    wanted = _DTYPES.get(dtype) or _stored_dtype(model)
    tensors = {key: _cast(key, value, wanted) for key, value in ldm_tensors(parts).items()}
    items = {id(item): item for handle in (model, clip) if handle for item in handle.lineage}
    loras = [described(item) for item in items.values()]
    header = open_safetensors(base).metadata if base is not None else {}
    if loras:
        header = merged_metadata(header, base.name if base is not None else "unknown", loras)
    header = {**header, **{name: json.dumps(data) for name, data in workflow.items()}}
    write_safetensors(path, tensors, header)
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())
    merges = json.loads(header.get(MERGED_KEY, "[]"))
    facts = {
        "size": f"{path.stat().st_size / 2**20:.0f} MB",
        "tensors": ", ".join(f"{count} {name}" for name, count in dtypes.most_common()),
        "LoRAs": ", ".join(lora["name"] for merge in merges for lora in merge["loras"]) or "none",
    }
    return Saved(path, facts)


def _base_file(model: Model) -> Path | None:
    """The file the UNet was read from."""
    return next((place.path for place in model.part.files.values()), None)


def _stored_dtype(model: Model) -> torch.dtype:
    """The UNet's dtype in its file; float32 where that is none to merge into."""
    place = next(iter(model.part.files.values()), None)
    stored = open_safetensors(place.path).tensors[place.key].dtype if place else torch.float32
    return stored if stored in _DTYPES.values() else torch.float32


def _cast(key: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    values = weight.to(dtype)
    if values.isinf().sum() > weight.isinf().sum():
        raise LoraError(
            f"{key} holds values that are too large for {dtype}.",
            {"Largest": float(weight.abs().max()), "Limit": torch.finfo(dtype).max},
            "save as bf16 or fp32.",
        )
    return values
