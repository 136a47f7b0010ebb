"""Save Merged Model: ComfyUI writes the checkpoint; name, dtype and lineage are ours."""

import json
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_sampling
import comfy.sd
import folder_paths
import torch
from comfy.cli_args import args
from torch import Tensor

from ...lora_core.errors import LoraError, UnknownChoiceError
from ...lora_core.files.safetensors_file import SafetensorsFile, open_safetensors
from ...lora_core.files.write import SafetensorsWriter
from ...lora_core.patching.merge_file import MERGED_KEY, merged_metadata
from ..merged_entry import described
from ..protocol import Saved
from .base_checkpoint import checkpoint_files
from .lineage import common_lineage
from .quantised_error import QuantisedError, quantised_errors
from .runtime import runtime_notes

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# The names that ComfyUI's CheckpointSave writes; the subclass comes before its base.
_ARCHITECTURES = {
    "SDXL_instructpix2pix": "stable-diffusion-xl-v1-edit",
    "SDXL": "stable-diffusion-xl-v1-base",
    "SDXLRefiner": "stable-diffusion-xl-v1-refiner",
    "SVD_img2vid": "stable-video-diffusion-img2vid-v1",
    "SD3": "stable-diffusion-v3-medium",
}
_QUANTISED_MARKS = (".comfy_quant", ".scale_weight")


def saved_model(
    model: Any, clip: Any, vae: Any, filename: str, dtype: str, workflow: Mapping[str, object]
) -> Saved:
    """See ``Host.save_model``."""
    if dtype not in ("as_loaded", *_DTYPES):
        raise UnknownChoiceError("dtype", dtype, ("as_loaded", *_DTYPES))
    patchers = [model, *([clip.patcher] if clip is not None else [])]
    _refuse_runtime(patchers)
    folder, stem, number = _place(filename)
    lineage = _lineage(patchers)
    metadata = _conventions(model, f"{stem} {number}") | lineage | _workflow(workflow)
    with _temporary(folder) as written:
        comfy.sd.save_checkpoint(
            str(written), model, clip, vae, metadata=metadata, extra_keys=_extra_keys(model)
        )
        errors = quantised_errors(patchers)
        file = open_safetensors(written)
        if dtype != "as_loaded":
            with _temporary(folder) as cast:
                _write_cast(file, cast, _DTYPES[dtype])
                cast.replace(written)
        path = _publish(written, folder, stem, number)
    return Saved(path, _facts(path, lineage, errors, patchers))


def _refuse_runtime(patchers: list[Any]) -> None:
    if any(runtime_notes(patcher) for patcher in patchers):
        raise LoraError(
            "The LoRAs of this model are applied in runtime mode: they are not in its weights.",
            {"Mode": "runtime"},
            "set the mode of Apply LoRAs to 'merge', or use Merge Into Model, and save again.",
        )


def _place(filename: str) -> tuple[Path, str, int]:
    """Folder, name without number and ending, and first free number.

    Raises:
        LoraError: the name is empty or leaves the output folder.
    """
    output = Path(folder_paths.get_output_directory()).resolve()
    name = filename.replace("\\", "/").strip().removesuffix(".safetensors")
    parts = name.split("/")
    if not parts[-1] or name.startswith("/") or ".." in parts or ":" in name or "\0" in name:
        raise LoraError(
            "The file name is not one inside the output folder.",
            {"Got": repr(filename), "Output folder": output},
            "give a name such as checkpoints/merged.",
        )
    folder, stem, number, *_ = folder_paths.get_save_image_path(name, str(output))
    return Path(folder), stem, number


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A path that is gone afterwards, unless it was renamed."""
    path = folder / f".lora-workbench-{secrets.token_hex(8)}.tmp"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _publish(written: Path, folder: Path, stem: str, number: int) -> Path:
    """Give a file its name; a name that exists is never taken."""
    while (path := folder / f"{stem}_{number:05}_.safetensors").exists():
        number += 1
    return written.rename(path)


def _conventions(model: Any, title: str) -> dict[str, str]:
    """``modelspec.*`` as ComfyUI's CheckpointSave writes it (0.30)."""
    metadata = {}
    inner = model.model
    known = (name for name in _ARCHITECTURES if name in [c.__name__ for c in type(inner).__mro__])
    architecture = next(known, None)
    if architecture is not None:
        metadata = {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.implementation": "sgm",
            "modelspec.architecture": _ARCHITECTURES[architecture],
            "modelspec.title": title,
        }
    if inner.model_type == comfy.model_base.ModelType.EPS:
        metadata["modelspec.predict_key"] = "epsilon"
    elif inner.model_type == comfy.model_base.ModelType.V_PREDICTION:
        metadata["modelspec.predict_key"] = "v"
    return metadata


def _extra_keys(model: Any) -> dict[str, Tensor]:
    """Tensors by which ComfyUI's loader knows the kind of sampling again (0.30)."""
    sampling = model.get_model_object("model_sampling")
    keys = {}
    if isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM) and isinstance(
        sampling, comfy.model_sampling.V_PREDICTION
    ):
        keys = {
            f"edm_vpred.{name}": torch.tensor(getattr(sampling, name)).float()
            for name in ("sigma_max", "sigma_min")
        }
    if model.model.model_type == comfy.model_base.ModelType.V_PREDICTION:
        keys["v_pred"] = torch.tensor([])
        if getattr(sampling, "zsnr", False):
            keys["ztsnr"] = torch.tensor([])
    return keys


def _workflow(workflow: Mapping[str, object]) -> dict[str, str]:
    if args.disable_metadata:
        return {}
    return {name: json.dumps(value) for name, value in workflow.items()}


def _lineage(patchers: list[Any]) -> dict[str, str]:
    """What was merged, after what the base's own file says was merged into it."""
    loras = [described(item) for item in common_lineage(patchers)]
    base = next(checkpoint_files(patchers[0]), None)
    header = base.metadata if base is not None else {}
    earlier = {MERGED_KEY: header[MERGED_KEY]} if MERGED_KEY in header else {}
    if not loras:
        return earlier
    return merged_metadata(earlier, base.path.name if base is not None else "unknown", loras)


def _write_cast(file: SafetensorsFile, path: Path, dtype: torch.dtype) -> None:
    """Copy a checkpoint with its weights in another dtype; quantised layers stay as they are.

    Raises:
        LoraError: a weight is too large for the dtype.
    """
    kept = tuple(_quantised_layers(file))
    dtypes = {
        key: dtype
        if info.dtype.is_floating_point and info.shape and not key.startswith(kept)
        else info.dtype
        for key, info in file.tensors.items()
    }
    layout = {key: (dtypes[key], info.shape) for key, info in file.tensors.items()}
    with SafetensorsWriter(path, layout, file.metadata) as writer:
        for key, info in file.tensors.items():
            if dtypes[key] == info.dtype:
                writer.copy_range(file, info.start, key, info.nbytes)
            else:
                writer.write(key, _cast(key, file.read(key), dtype))


def _cast(key: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    values = weight.to(dtype)
    if values.isinf().sum() > weight.float().isinf().sum():
        raise LoraError(
            f"{key} holds values that are too large for {dtype}.",
            {"Largest": float(weight.float().abs().max()), "Limit": torch.finfo(dtype).max},
            "save as bf16 or fp32.",
        )
    return values


def _quantised_layers(file: SafetensorsFile) -> Iterator[str]:
    """Prefixes of the layers whose numbers are not their values."""
    for key in file.tensors:
        for mark in _QUANTISED_MARKS:
            if key.endswith(mark):
                yield key.removesuffix(mark) + "."


def _facts(
    path: Path, lineage: Mapping[str, str], errors: list[QuantisedError], patchers: list[Any]
) -> dict[str, str]:
    file = open_safetensors(path)
    dtypes = Counter(str(info.dtype).removeprefix("torch.") for info in file.tensors.values())
    loras = [lora for merge in json.loads(lineage.get(MERGED_KEY, "[]")) for lora in merge["loras"]]
    facts = {
        "size": f"{path.stat().st_size / 2**20:.0f} MB",
        "tensors": ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common()),
        "LoRAs": ", ".join(lora["name"] for lora in loras) or "none",
    }
    injected = [str(name) for patcher in patchers for name in patcher.injections]
    if injected:
        facts["not in the file"] = f"what other nodes inject at run time ({', '.join(injected)})"
    if errors:
        facts["quantised layers"] = _errors_text(errors)
    return facts


def _errors_text(errors: list[QuantisedError]) -> str:
    """Error of the LoRAs' effect, shares of the delta's norm."""
    ordered = sorted(errors, key=lambda error: error.share)
    median, worst = ordered[len(ordered) // 2], ordered[-1]
    return (
        f"{len(errors)} stay quantised; rounding changes the LoRAs' effect by {median.share:.1%} "
        f"(median), at most {worst.share:.1%} ({worst.key})"
    )
