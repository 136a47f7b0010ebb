"""Which of ComfyUI's models can be trained, and the noise that each one knows."""

from typing import Any

import comfy.model_sampling
import torch

from ...lora_core.errors import LoraError
from ...training.objective import NoiseLevels
from .model_kinds import is_packed

PIXELS = 8
"""That a latent covers in each direction."""

_RULES = ("calculate_input", "calculate_denoised", "noise_scaling")
_OTHER_MODEL = "take a model of single pictures, such as SD 1.5, SDXL, SD3 or Flux."


def refuse_untrainable(model: Any, vae: Any) -> None:
    """Refuse what would be trained on something else than it is used for. Loads nothing.

    Args:
        model: MODEL.
        vae: Its autoencoder.

    Raises:
        LoraError: weights are packed, latents are not those of pictures at an eighth of their
            size, the autoencoder is another model's, or the model reads a second picture.
    """
    _refuse_packed(model.model)
    _refuse_latents(model.model)
    _refuse_autoencoder(model.model.latent_format, vae)
    _refuse_second_picture(model)


def refuse_missing(clip: Any, vae: Any) -> None:
    """Refuse what a checkpoint does not hold: loaders give None, or a VAE without weights.

    Raises:
        LoraError: names what is missing.
    """
    has_vae = vae is not None and vae.first_stage_model is not None
    missing = [name for name, is_there in (("CLIP", clip), ("VAE", has_vae)) if not is_there]
    if missing:
        raise LoraError(
            "A part of the model is missing.",
            {"Missing": " and ".join(missing)},
            "connect loaders of the text encoders and of the VAE that belong to the model.",
        )


def refuse_patches(model: Any, clip: Any) -> None:
    """Refuse a model with LoRAs.

    Raises:
        LoraError: patches lie on it, or beside its weights.
    """
    patchers = {"MODEL": model, "CLIP": clip.patcher}
    patched = {
        name: f"{len(patcher.patches)} patched weights"
        + (", LoRAs beside the weights" if patcher.injections else "")
        for name, patcher in patchers.items()
        if patcher.patches or patcher.injections
    }
    if patched:
        raise LoraError(
            "LoRAs or other patches are on this model; what is trained would only fit beside them.",
            patched,
            "connect the checkpoint itself, or bake them with Merge Into Model (mode bake).",
        )


def noise_levels(sampling: Any) -> NoiseLevels:
    """The noise levels of ComfyUI's ``model_sampling``, in the order of its table.

    Raises:
        LoraError: the model is of a kind whose objective is not known here.
    """
    known = comfy.model_sampling
    if _has_rules_of(sampling, known.CONST) and getattr(sampling, "noise_scale", 1.0) == 1:
        noise = sampling.sigmas.double().cpu()
        return NoiseLevels("flow", 1 - noise, noise)
    if isinstance(sampling, known.ModelSamplingDiscrete):
        alphas = 1 / (sampling.sigmas.double() ** 2 + 1)
        if _has_rules_of(sampling, known.V_PREDICTION):
            return NoiseLevels.of_alphas("v_prediction", alphas)
        if _has_rules_of(sampling, known.EPS):
            return NoiseLevels.of_alphas("epsilon", alphas)
    raise LoraError(
        "This kind of model is not trained here.",
        {"Its sampling": ", ".join(base.__name__ for base in type(sampling).__bases__)},
        "take a model that predicts noise, velocity or flow.",
    )


def _has_rules_of(sampling: Any, kind: type) -> bool:
    """Whether noise is added and taken off as the kind does; LCM and others change it."""
    return isinstance(sampling, kind) and all(
        getattr(type(sampling), rule) is getattr(kind, rule) for rule in _RULES
    )


def _refuse_packed(inner: Any) -> None:
    packed = [name for name, weight in inner.named_parameters() if is_packed(weight)]
    if not packed:
        return
    first = inner.get_parameter(packed[0])
    form = getattr(first, "_layout_cls", None) or first.dtype
    more = f" and {len(packed) - 1} more" if len(packed) > 1 else ""
    raise LoraError(
        "This model's weights are quantised in a form that is not trained here.",
        {"Stored as": form, "Weights": packed[0] + more},
        "load a checkpoint of the same model in fp16, bf16 or fp32; what is trained on it can be "
        "used with the quantised one.",
    )


def _refuse_latents(inner: Any) -> None:
    latents = inner.latent_format
    if latents.latent_dimensions == 2 and latents.spacial_downscale_ratio == PIXELS:
        return
    raise LoraError(
        f"The trainer makes no latents for {type(inner).__name__}.",
        {
            "Dimensions": f"{latents.latent_dimensions}, pictures have 2",
            "Pixels in a latent": f"{latents.spacial_downscale_ratio}, {PIXELS} are trained",
        },
        _OTHER_MODEL,
    )


def _refuse_autoencoder(latents: Any, vae: Any) -> None:
    pixels = vae.spacial_compression_encode()
    if vae.latent_dim == 2 and pixels == PIXELS and vae.latent_channels == latents.latent_channels:
        return
    raise LoraError(
        "The VAE is not this model's.",
        {
            "The VAE's latents": f"{vae.latent_channels} channels, {pixels} pixels in each",
            "The model's": f"{latents.latent_channels} channels, {PIXELS} pixels in each",
        },
        "connect the VAE that belongs to the model.",
    )


def _refuse_second_picture(model: Any) -> None:
    """ComfyUI: what such models read beside the noisy latents is put behind their channels."""
    latent = torch.zeros(1, model.model.latent_format.latent_channels, 8, 8)
    more = model.model.concat_cond(noise=latent, latent_image=latent, device=latent.device)
    if more is None:
        return
    raise LoraError(
        "This model reads a second picture or a mask beside the noise, which is not trained here.",
        {"Model": type(model.model).__name__, "Channels beside the latents": more.shape[1]},
        "train on the base model it was made from.",
    )
