"""Folders in diffusers' form: the configurations in them are the truth; nothing is downloaded."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ....lora_core.errors import DamagedFileError, LoraError
from ....lora_core.files.safetensors_file import open_safetensors
from ..parts import Checkpoint, DiffusionPart, EncoderName, Prediction, TextPart, VaePart
from .assemble import Stored, filled, renamed, stored_files
from .build import known_arguments, meta_text_encoder, meta_unet, meta_vae
from .families import FAMILIES, refuse_other_inputs, unsupported
from .text_config import canonical
from .unet_config import FAMILY_OF_LABEL
from .vae_names import current_vae_name

_WEIGHTS, _TEXT_WEIGHTS = "diffusion_pytorch_model", "model"
_PIPELINES = ("StableDiffusion", "StableDiffusionXL")
_OTHER_PIPELINES = ("StableDiffusion3", "StableDiffusionLatentUpscale", "StableDiffusionUpscale")
_UNET_CLASS, _KL, _TINY = "UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny"
_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
_ENCODER_FOLDERS: Mapping[str, Mapping[EncoderName, str]] = {
    "sd15": {"l": "text_encoder"},
    "sd2": {"h": "text_encoder"},
    "sdxl": {"l": "text_encoder", "g": "text_encoder_2"},
    "sdxl-refiner": {"g": "text_encoder_2"},
}


def load_folder(path: Path, dtype: torch.dtype, device: torch.device) -> Checkpoint:
    """Load a folder; see ``load_checkpoint``."""
    _require_pipeline(path)
    config = _component(path / "unet", (_UNET_CLASS,))
    family = _family(path, config)
    unet = meta_unet(known_arguments(_UNET_CLASS, config))
    refuse_other_inputs(path.name, unet.config["in_channels"], unet.config["out_channels"])
    sources = _sources(path / "unet", _WEIGHTS)
    vae = _vae(path, family, dtype, device)
    filled(unet, sources, {}, dtype, device)
    is_tiny = vae is not None and type(vae.vae).__name__ == _TINY
    scale = vae.latent_scale if vae and not is_tiny else FAMILIES[family].latent_scale
    diffusion = DiffusionPart(unet, family, _prediction(path), scale, stored_files(unet, sources))
    return Checkpoint(diffusion, _text(path, family, dtype, device), vae)


def _require_pipeline(path: Path) -> None:
    if not (path / "model_index.json").is_file():
        inside = sorted(entry.name for entry in path.iterdir())
        raise LoraError(
            f"{path.name}: this folder is no model in diffusers' form.",
            {"Missing": "model_index.json", "Found": ", ".join(inside[:5]) or "nothing"},
            "choose the folder that holds model_index.json, unet and vae, or a checkpoint file.",
        )
    name = str(_read_json(path / "model_index.json").get("_class_name"))
    if not name.startswith(_PIPELINES) or name.startswith(_OTHER_PIPELINES):
        raise unsupported(path.name, f"this is a {name}", {"Read in": "model_index.json"})


def _component(folder: Path, classes: Collection[str]) -> dict[str, Any]:
    """The configuration of a component of one of these classes."""
    config = _read_json(folder / "config.json")
    found = config.get("_class_name", next(iter(classes)))
    if found not in classes:
        raise unsupported(folder.parent.name, f"{folder.name} is a {found}", {})
    return config


def _family(path: Path, config: Mapping[str, Any]) -> str:
    if config.get("addition_embed_type") == "text_time":
        other = "sdxl" if (path / "text_encoder").is_dir() else "sdxl-refiner"
        return FAMILY_OF_LABEL.get(config["projection_class_embeddings_input_dim"], other)
    return "sd2" if config.get("use_linear_projection") else "sd15"


def _prediction(path: Path) -> Prediction:
    file = path / "scheduler" / "scheduler_config.json"
    config = _read_json(file)
    for name, value in _SCHEDULE.items():
        if (config.get(name, value) or None) != (value or None):
            raise unsupported(
                path.name, "this model has a noise schedule of its own", {name: config[name]}
            )
    found = config.get("prediction_type", "epsilon")
    if found not in ("epsilon", "v_prediction"):
        raise unsupported(path.name, f"this model predicts {found!r}", {"Read in": file.name})
    return found  # type: ignore[no-any-return]


def _text(path: Path, family: str, dtype: torch.dtype, device: torch.device) -> TextPart | None:
    folders = _ENCODER_FOLDERS[family]
    present = {encoder: name for encoder, name in folders.items() if (path / name).is_dir()}
    if not present:
        return None
    if len(present) < len(folders):
        raise LoraError(
            f"{path.name}: a text encoder is missing.",
            {"Expected": ", ".join(folders.values()), "Found": ", ".join(present.values())},
            "download the whole folder again.",
        )
    encoders: dict[EncoderName, torch.nn.Module] = {}
    files = {}
    for encoder, name in folders.items():
        stored = _sources(path / name, _TEXT_WEIGHTS)
        config = known_arguments("CLIPTextConfig", _read_json(path / name / "config.json"))
        module = meta_text_encoder(config, "text_projection.weight" in stored)
        parameters = {canonical(own): own for own, _ in module.named_parameters()}
        sources = renamed({canonical(key): place for key, place in stored.items()}, parameters)
        encoders[encoder] = filled(module, sources, {}, dtype, device)
        files |= {f"{encoder}.{own}": p for own, p in stored_files(module, sources).items()}
    return TextPart(encoders, family, files, _tokenizer(path))


def _tokenizer(path: Path) -> Path | None:
    """The folder of CLIP's vocabulary; both encoders of SDXL have the same."""
    folders = (path / "tokenizer", path / "tokenizer_2")
    return next((folder for folder in folders if (folder / "vocab.json").is_file()), None)


def _vae(path: Path, family: str, dtype: torch.dtype, device: torch.device) -> VaePart | None:
    folder = path / "vae"
    if not folder.is_dir():
        return None
    config = _component(folder, (_KL, _TINY))
    is_tiny = config.get("_class_name") == _TINY
    vae = meta_vae(known_arguments(_TINY if is_tiny else _KL, config), is_tiny)
    shifts = [name for name in ("shift_factor", "latents_mean") if vae.config.get(name)]
    if shifts:
        raise unsupported(path.name, "the VAE shifts its latents", {"Read in": "vae/config.json"})
    sources = _sources(folder, _WEIGHTS)
    if not is_tiny:
        sources = renamed(sources, {name: current_vae_name(name) for name in sources})
    filled(vae, sources, {}, dtype, device)
    factor = float(vae.config["scaling_factor"])
    # TAESD is given the latents of nodes times latent_scale; pipelines give it the UNet's.
    scale = FAMILIES[family].latent_scale / factor if is_tiny else factor
    return VaePart(vae, scale)


def _sources(folder: Path, stem: str) -> dict[str, Stored]:
    """Every tensor of a component's weight files, by name, without buffers."""
    stored = {}
    for file in map(open_safetensors, _weight_files(folder, stem)):
        for key, info in file.tensors.items():
            if not key.endswith(".position_ids"):
                stored[key] = Stored(file, key, info.shape)
    return stored


def _weight_files(folder: Path, stem: str) -> list[Path]:
    """One file or the shards of an index; full precision before ``fp16``."""
    for variant in ("", ".fp16"):
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
        for index in (
            folder / f"{stem}.safetensors.index{variant}.json",
            folder / f"{stem}{variant}.safetensors.index.json",
        ):
            if index.is_file():
                return _shards(index)
    found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    raise LoraError(
        f"{folder.parent.name}: the weights of {folder.name} are missing.",
        {
            "Looked for": f"{stem}.safetensors, {stem}.fp16.safetensors and their indexes",
            "Found": ", ".join(found[:5]) or "nothing",
        },
        "download the .safetensors files of this folder, or convert the others to them.",
    )


def _shards(index: Path) -> list[Path]:
    places = _read_json(index).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise DamagedFileError(
            f"{index.name}: the index does not name files beside it.",
            {"file": index, "names": names[:3]},
            "download the folder again.",
        )
    return [index.parent / name for name in names]


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise LoraError(
            f"{file.parent.name}/{file.name} is missing.",
            {"Looked for": file},
            "download the whole folder again.",
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"{file.name}: the file is not JSON.", {"file": file}, "download it again."
        ) from error
    if not isinstance(found, dict):
        raise DamagedFileError(
            f"{file.name}: the file is no JSON object.", {"file": file}, "download it again."
        )
    return found
