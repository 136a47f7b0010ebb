"""From loaded parts back to the names and layout of a single-file checkpoint."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....lora_core.models.unet import ldm_modules_of_diffusers
from ..parts import Checkpoint, EncoderName, TextPart
from .text_config import canonical
from .vae_names import ldm_vae_name, tiny_vae_name

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
TINY_SCALE, TINY_SHIFT = "vae_scale", "vae_shift"
V_MARK = "v_pred"
_TEXT_PREFIXES: Mapping[tuple[str, EncoderName], str] = {
    ("sd15", "l"): "cond_stage_model.transformer.",
    ("sd2", "h"): "cond_stage_model.model.",
    ("sdxl", "l"): "conditioner.embedders.0.transformer.",
    ("sdxl", "g"): "conditioner.embedders.1.model.",
    ("sdxl-refiner", "g"): "conditioner.embedders.0.model.",
}
_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OUTSIDE = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_INNER = {
    "layer_norm1": "ln_1.",
    "layer_norm2": "ln_2.",
    "mlp.fc1": "mlp.c_fc.",
    "mlp.fc2": "mlp.c_proj.",
    "self_attn.out_proj": "attn.out_proj.",
}
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Place:
    """Where a parameter goes in a single-file checkpoint.

    Attributes:
        key: Name of the tensor.
        shape: Of the whole tensor.
        first_row: Where the parameter begins in dimension 0 of a tensor that fuses several.
        transposed: The tensor holds the transpose.
    """

    key: str
    shape: tuple[int, ...]
    first_row: int = 0
    transposed: bool = False


def ldm_places(checkpoint: Checkpoint) -> dict[str, Place]:
    """Give the place of every parameter of a checkpoint.

    Returns:
        Parameter, under its name in a pipeline (``unet.``, ``text_encoder.``,
        ``text_encoder_2.``, ``vae.``), to its place, in the order of the modules.
    """
    unet = checkpoint.diffusion.unet
    places = {f"unet.{name}": place for name, place in unet_places(unet).items()}
    text = checkpoint.text
    for number, encoder in enumerate(text.encoders if text else ()):
        pipeline = "text_encoder." if number == 0 else "text_encoder_2."
        places |= {pipeline + name: place for name, place in text_places(text, encoder).items()}
    if checkpoint.vae:
        places |= {f"vae.{name}": p for name, p in vae_places(checkpoint.vae.vae).items()}
    return places


def ldm_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Give the checkpoint's key for every parameter; fused ones share a key: see ``ldm_places``."""
    return {name: place.key for name, place in ldm_places(checkpoint).items()}


def ldm_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Give every tensor of the checkpoint's single file, contiguous, by key.

    Those that are stored as they are share memory with the parameters.
    """
    places = ldm_places(checkpoint)
    tensors: dict[str, Tensor] = {}
    for name, parameter in _named_parameters(checkpoint):
        place = places[name]
        value = parameter.detach().T if place.transposed else parameter.detach()
        if value.shape[0] == place.shape[0]:
            tensors[place.key] = value.reshape(place.shape).contiguous()
            continue
        whole = tensors.setdefault(place.key, value.new_empty(place.shape))
        whole[place.first_row : place.first_row + value.shape[0]] = value
    return tensors | _marks(checkpoint)


def _marks(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What the file must say beside the weights, as ComfyUI 0.30 reads it."""
    marks = {}
    diffusion, vae = checkpoint.diffusion, checkpoint.vae
    if diffusion.family == "sdxl" and diffusion.prediction == "v_prediction":
        marks[V_MARK] = torch.empty(0)
    if vae and _is_tiny(vae.vae):
        marks[VAE_PREFIX + TINY_SCALE] = torch.tensor(vae.latent_scale)
        marks[VAE_PREFIX + TINY_SHIFT] = torch.tensor(0.0)
    return marks


def _is_tiny(vae: nn.Module) -> bool:
    return type(vae).__name__ == "AutoencoderTiny"


def unet_places(unet: nn.Module) -> dict[str, Place]:
    """Give the place of each parameter of a UNet; works on the meta device too."""
    shapes = _shapes(unet)
    modules = ldm_modules_of_diffusers(dict.fromkeys(n.rpartition(".")[0] for n in shapes))
    return {
        name: Place(f"{UNET_PREFIX}{modules[module]}.{leaf}", shape)
        for name, shape in shapes.items()
        for module, _, leaf in [name.rpartition(".")]
    }


def text_places(part: TextPart, encoder: EncoderName) -> dict[str, Place]:
    """Give the place of each parameter of one text encoder."""
    return text_places_of(part.encoders[encoder], part.family, encoder)


def text_places_of(module: nn.Module, family: str, encoder: EncoderName) -> dict[str, Place]:
    """Give the place of each parameter of a text encoder; works on the meta device too."""
    prefix = _TEXT_PREFIXES[family, encoder]
    if encoder == "l":
        return {n: Place(prefix + canonical(n), shape) for n, shape in _shapes(module).items()}
    return {n: _open_clip(prefix, canonical(n), shape) for n, shape in _shapes(module).items()}


def vae_places(vae: nn.Module) -> dict[str, Place]:
    """Give the place of each parameter of a VAE; works on the meta device too."""
    shapes = _shapes(vae)
    if _is_tiny(vae):
        return {n: Place(VAE_PREFIX + tiny_vae_name(n), shape) for n, shape in shapes.items()}
    levels = len(vae.config["block_out_channels"])  # type: ignore[index]
    return {
        name: Place(VAE_PREFIX + ldm_vae_name(name, levels), _kernel(name, shape))
        for name, shape in shapes.items()
    }


def _kernel(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The file's shape: projections of the attention are kernels of 1 x 1 there."""
    return (*shape, 1, 1) if ".attentions." in name and len(shape) == 2 else shape


def _open_clip(prefix: str, name: str, shape: tuple[int, ...]) -> Place:
    if name in _OUTSIDE:
        is_turned = name == "text_projection.weight"
        whole = tuple(reversed(shape)) if is_turned else shape
        return Place(prefix + _OUTSIDE[name], whole, transposed=is_turned)
    layer, inner, leaf = _LAYER.fullmatch(name).groups()  # type: ignore[union-attr]
    block = f"{prefix}transformer.resblocks.{layer}"
    if inner in _FUSED:
        first_row = _FUSED.index(inner) * shape[0]
        return Place(f"{block}.attn.in_proj_{leaf}", (3 * shape[0], *shape[1:]), first_row)
    return Place(f"{block}.{_INNER[inner]}{leaf}", shape)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _named_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, nn.Parameter]]:
    parts = {"unet.": checkpoint.diffusion.unet}
    encoders = list(checkpoint.text.encoders.values()) if checkpoint.text else []
    parts |= dict(zip(("text_encoder.", "text_encoder_2."), encoders, strict=False))
    if checkpoint.vae:
        parts["vae."] = checkpoint.vae.vae
    for prefix, module in parts.items():
        for name, parameter in module.named_parameters():
            yield prefix + name, parameter
