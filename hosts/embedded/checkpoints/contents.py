"""Every tensor of a single-file checkpoint, sorted into what it belongs to."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from ....lora_core.errors import LoraError
from ....lora_core.files.safetensors_file import SafetensorsFile
from ....lora_core.models.components import text_encoders, unet_targets
from ....lora_core.models.target import Target
from ....lora_core.models.unet import diffusers_modules_of_ldm
from .assemble import Stored, listed, unknown_tensors
from .families import COMFYUI_FIX
from .ldm_names import V_MARK, VAE_PREFIX

_LOG = logging.getLogger(__name__)
_COMPONENTS = ("model.diffusion_model.", "cond_stage_model.", "conditioner.", VAE_PREFIX)
# What training left in published files, and buffers that no part needs to be given.
_UNUSED_PREFIXES = ("model_ema.", f"{VAE_PREFIX}loss.", "denoiser.", "posterior_")
_UNUSED_SUFFIXES = (".position_ids", ".logit_scale", ".attn_mask")
_UNUSED_ENDINGS = ("alphas_cumprod", "alphas_cumprod_prev", "betas", "logvar")
_SAMPLING = frozenset(
    {V_MARK, "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"}
)


@dataclass(frozen=True)
class Contents:
    """What a file holds; each of its tensors is in exactly one place.

    Attributes:
        unet: diffusers name of each of the UNet's tensors to its place.
        encoders: The text encoders' tensors in the order of the file's numbering, by the name
            that files have, with ``text_model.``.
        vae: The VAE's tensors, by their names without prefix.
        sampling: Tensors that say how to sample: ``v_pred`` and so on.
        unused: What is known to be in published files and is not needed.
        foreign: What belongs to no known component, as ``control_model.``.
    """

    unet: Mapping[str, Stored]
    encoders: tuple[Mapping[str, Stored], ...]
    vae: Mapping[str, Stored]
    sampling: frozenset[str]
    unused: tuple[str, ...]
    foreign: tuple[str, ...]


def contents_of(file: SafetensorsFile) -> Contents:
    """Sort the tensors of a file.

    Raises:
        LoraError: there is no UNet, or tensors of a component have no place in it.
    """
    shapes = {key: info.shape for key, info in file.tensors.items()}
    unet = unet_targets(shapes)
    if not unet:
        raise _no_unet(file)
    encoders = [encoder.targets for encoder in text_encoders(shapes)]
    used = {target.target_key for targets in (unet, *encoders) for target in targets}
    vae = [key for key in shapes if key.startswith(VAE_PREFIX) and not _is_unused(key)]
    rest = [key for key in shapes if key not in used.union(vae, _SAMPLING)]
    left = [key for key in rest if not _is_unused(key)]
    unknown = [key for key in left if key.startswith(_COMPONENTS)]
    if unknown:
        raise unknown_tensors(unknown)
    if left:
        _LOG.warning("%s: %d tensors not used: %s", file.path.name, len(left), listed(left))
    return Contents(
        unet=_by_diffusers_name(file, unet),
        encoders=tuple({t.canonical: _stored(file, t) for t in targets} for targets in encoders),
        vae={key[len(VAE_PREFIX) :]: Stored(file, key, shapes[key]) for key in vae},
        sampling=frozenset(_SAMPLING & shapes.keys()),
        unused=tuple(key for key in rest if _is_unused(key)),
        foreign=tuple(left),
    )


def _is_unused(key: str) -> bool:
    return (
        key.startswith(_UNUSED_PREFIXES)
        or key.endswith(_UNUSED_SUFFIXES)
        or ("." not in key and key.endswith(_UNUSED_ENDINGS))
    )


def _by_diffusers_name(file: SafetensorsFile, targets: tuple[Target, ...]) -> dict[str, Stored]:
    split = [(target, *target.canonical.rpartition(".")[::2]) for target in targets]
    modules = diffusers_modules_of_ldm(dict.fromkeys(module for _, module, _ in split))
    unknown = [target.target_key for target, module, _ in split if module not in modules]
    if unknown:
        raise unknown_tensors(unknown)
    return {f"{modules[module]}.{leaf}": _stored(file, target) for target, module, leaf in split}


def _stored(file: SafetensorsFile, target: Target) -> Stored:
    return Stored(file, target.target_key, target.shape, target.rows, target.transposed)


def _no_unet(file: SafetensorsFile) -> LoraError:
    keys = list(file.tensors)
    return LoraError(
        f"{file.path.name}: no Stable Diffusion UNet was found in this file.",
        {
            "Looked for": "model.diffusion_model.input_blocks.0.0.weight and its like",
            "Found": f"{len(keys)} tensors: {listed(keys)}",
        },
        f"choose a checkpoint, not a LoRA or a single part; for another model, {COMFYUI_FIX}",
    )
