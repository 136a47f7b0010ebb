"""Single-file checkpoints in ldm and SGM names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ....lora_core.errors import LoraError
from ....lora_core.files.safetensors_file import SafetensorsFile, open_safetensors
from ..parts import Checkpoint, DiffusionPart, EncoderName, Prediction, TextPart, VaePart
from . import text_config, unet_config, vae_config
from .assemble import Stored, filled, renamed, stored_files
from .build import meta_text_encoder, meta_unet, meta_vae
from .contents import Contents, contents_of
from .families import FAMILIES, refuse_other_inputs, refuse_other_models, unsupported
from .ldm_names import (
    TINY_SCALE,
    TINY_SHIFT,
    V_MARK,
    VAE_PREFIX,
    text_places_of,
    unet_places,
    vae_places,
)
from .stated import TEXT_ENCODERS, UNET, VAE, choice, require_agreement, stated
from .text_config import canonical

_V_BIAS = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
_V_SPREAD = 0.09


def load_single_file(path: Path, dtype: torch.dtype, device: torch.device) -> Checkpoint:
    """Load a checkpoint file; see ``load_checkpoint``."""
    file = open_safetensors(path)
    refuse_other_models(path.name, file.tensors)
    contents = contents_of(file)
    said = stated(file, UNET, unet_config.STATED)
    family = unet_config.unet_family(path.name, _shapes(contents.unet), said)
    diffusion = _diffusion(file, contents, family, said, dtype, device)
    text = _text(file, contents, family, dtype, device)
    return Checkpoint(diffusion, text, _vae(file, contents, family, dtype, device))


def _diffusion(
    file: SafetensorsFile,
    contents: Contents,
    family: str,
    said: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
) -> DiffusionPart:
    config = unet_config.unet_config(_shapes(contents.unet), family, said)
    compared = {name: value for name, value in config.items() if name != "attention_head_dim"}
    require_agreement(UNET, _as_levels(said, len(config["block_out_channels"])), compared)
    refuse_other_inputs(file.path.name, config["in_channels"], config["out_channels"])
    prediction = _prediction(file.path.name, contents, family, said)
    unet = meta_unet(config)
    spelled = {name: place.key for name, place in unet_places(unet).items()}
    filled(unet, contents.unet, spelled, dtype, device)
    files = stored_files(unet, contents.unet)
    return DiffusionPart(unet, family, prediction, _latent_scale(file, family), files)


def _as_levels(said: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """A header may give one number of resnets for all levels."""
    resnets = said.get("layers_per_block")
    return {**said, "layers_per_block": [resnets] * levels} if type(resnets) is int else dict(said)


def _prediction(name: str, contents: Contents, family: str, said: Mapping[str, Any]) -> Prediction:
    """What the UNet gives, as ComfyUI 0.30 decides it, unless the header states it.

    SDXL files say it with tensors. SD2's two kinds have equal shapes: the biases of one late norm
    spread wider in the 768-pixel model, which gives the velocity.
    """
    if "prediction" in said:
        return choice(UNET, "prediction", said["prediction"], unet_config.PREDICTIONS)  # type: ignore[return-value]
    marks = contents.sampling
    if family == "sdxl":
        edm = marks & {"edm_vpred.sigma_max"} or marks >= {"edm_mean", "edm_std"}
        if edm or marks >= {V_MARK, "ztsnr"}:
            raise unsupported(
                name, "this model has a noise schedule of its own", {"Marks": sorted(marks)}
            )
        return "v_prediction" if V_MARK in marks else "epsilon"
    stored = contents.unet.get(_V_BIAS)
    if family == "sd2" and contents.unet["conv_in.weight"].shape[1] == 4 and stored is not None:
        bias = stored.file.read(stored.key).float()
        return "v_prediction" if bias.std(correction=0) > _V_SPREAD else "epsilon"
    return "epsilon"


def _text(
    file: SafetensorsFile,
    contents: Contents,
    family: str,
    dtype: torch.dtype,
    device: torch.device,
) -> TextPart | None:
    names = FAMILIES[family].encoders
    if not contents.encoders:
        return None
    if len(contents.encoders) != len(names):
        raise LoraError(
            f"{file.path.name}: the text encoders are not those of {family}.",
            {"Expected": f"{len(names)}: {', '.join(names)}", "Got": len(contents.encoders)},
            "get a complete checkpoint; if it has none, all of their tensors must be away.",
        )
    encoders: dict[EncoderName, torch.nn.Module] = {}
    files = {}
    for encoder, sources, entry in zip(names, contents.encoders, TEXT_ENCODERS, strict=False):
        said = stated(file, entry, text_config.STATED)
        config = text_config.text_config(encoder, _shapes(sources), entry, said)
        require_agreement(entry, said, text_config.shown_by_shapes(config))
        module = meta_text_encoder(config, "text_projection.weight" in sources)
        own = renamed(sources, {canonical(name): name for name, _ in module.named_parameters()})
        spelled = {n: p.key for n, p in text_places_of(module, family, encoder).items()}
        encoders[encoder] = filled(module, own, spelled, dtype, device)
        files |= {f"{encoder}.{n}": place for n, place in stored_files(module, own).items()}
    return TextPart(encoders, family, files)


def _vae(
    file: SafetensorsFile,
    contents: Contents,
    family: str,
    dtype: torch.dtype,
    device: torch.device,
) -> VaePart | None:
    if not contents.vae:
        return None
    is_tiny = any(name.startswith("taesd_") for name in contents.vae)
    said = stated(file, VAE, vae_config.STATED)
    stored = {n: s for n, s in contents.vae.items() if n not in (TINY_SCALE, TINY_SHIFT)}
    if is_tiny:
        config = vae_config.tiny_config(_shapes(stored))
        scale = _tiny_scale(file)
        factor = _latent_scale(file, family) / scale  # what pipelines divide the UNet's latents by
    else:
        config = vae_config.kl_config(_shapes(contents.vae), said)
        scale = factor = _latent_scale(file, family)
    require_agreement(VAE, said, config)
    vae = meta_vae(config | {"scaling_factor": factor}, is_tiny)
    spelled = {name: place.key for name, place in vae_places(vae).items()}
    back = {key: name for name, key in spelled.items()}
    sources = renamed({VAE_PREFIX + name: place for name, place in stored.items()}, back)
    return VaePart(filled(vae, sources, spelled, dtype, device), scale)


def _tiny_scale(file: SafetensorsFile) -> float:
    """What TAESD multiplies the latents by that come from a node; 1 unless the file says more.

    Raises:
        LoraError: the file shifts latents, which no Stable Diffusion 1, 2 or XL does.
    """
    keys = [
        key for key in (VAE_PREFIX + TINY_SCALE, VAE_PREFIX + TINY_SHIFT) if key in file.tensors
    ]
    numbers = file.read_numbers(keys)
    if numbers.get(VAE_PREFIX + TINY_SHIFT):
        raise unsupported(
            file.path.name, "the VAE shifts its latents", {TINY_SHIFT: numbers[keys[-1]]}
        )
    return numbers.get(VAE_PREFIX + TINY_SCALE, 1.0)


def _latent_scale(file: SafetensorsFile, family: str) -> float:
    said = stated(file, VAE, vae_config.STATED)
    value = said.get("scaling_factor", FAMILIES[family].latent_scale)
    if type(value) not in (int, float) or not value > 0:
        raise LoraError(
            f"{VAE} needs a number above 0 for 'scaling_factor'.",
            {"Got": value},
            "correct the header entry, or write the checkpoint again.",
        )
    return float(value)


def _shapes(sources: Mapping[str, Stored]) -> dict[str, tuple[int, ...]]:
    return {name: stored.shape for name, stored in sources.items()}
