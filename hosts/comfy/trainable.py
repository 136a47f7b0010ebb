"""ComfyUI's model as the trainer sees it, in memory, whatever its architecture."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor, nn

import nodes

from ...lora_core.errors import LoraError
from ...lora_core.lora import Lora
from ...lora_core.models.target import Target
from ...lora_core.stack import StackItem
from ...training.config import PreviewConfig
from ...training.dataset.captions import as_prompt
from ...training.hashes import weights_hash
from ...training.trainable import Conditions, PictureSize
from .gradients import gradients
from .host import ComfyHost
from .model_kinds import refuse_unsupported
from .names import ComfyNames
from .trained_models import (
    PIXELS,
    noise_levels,
    refuse_missing,
    refuse_patches,
    refuse_untrainable,
)


class ComfyTrainable:
    """See ``Trainable``.

    Args:
        host: For previews.
        model: MODEL without patches.
        clip: CLIP without patches.
        vae: VAE.

    Raises:
        LoraError: patches are on the model, it is one that cannot be trained, or a part is missing.
    """

    def __init__(self, host: ComfyHost, model: Any, clip: Any, vae: Any) -> None:
        refuse_missing(clip, vae)
        refuse_unsupported(model)
        refuse_patches(model, clip)
        refuse_untrainable(model, vae)
        self._sampling = model.get_model_object("model_sampling")
        self.levels = noise_levels(self._sampling)
        self._host, self._vae = host, vae
        self._model, self._clip = _static(model), _static_clip(clip)
        clip = self._clip
        self._load_as_nodes_do()
        names = ComfyNames(self._model, clip)
        self.table = names
        encoders = {
            component: getattr(clip.cond_stage_model, name)
            for name, component in names.encoders.items()
        }
        self.parts: Mapping[str, nn.Module] = {"unet": self._model.model, **encoders}
        self.weights = trainable_weights(names)
        self.device = self._model.load_device
        text_hash = weights_hash(_read_weights(clip.cond_stage_model))
        model_hash = weights_hash(self._model.model.state_dict())
        self.identity = f"{model_hash}+{text_hash}"
        latents = self._model.model.latent_format
        scale = f"{type(latents).__name__} {latents.scale_factor}"
        self.autoencoder = f"{weights_hash(vae.first_stage_model.state_dict())} {scale}"
        self.text = f"{text_hash} skip {clip.layer_idx}"
        self.clip_skip = clip.layer_idx
        self.samplers = comfy.samplers.KSampler.SAMPLERS
        self.schedulers = comfy.samplers.KSampler.SCHEDULERS

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """The bare model on its device; its weights afterwards have the same bits."""
        self._load_as_nodes_do()
        with gradients(self.parts.values()):
            yield

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """See ``Trainable.encode_pictures``."""
        with torch.no_grad():
            latents = self._vae.encode(pictures.add(1).div(2).movedim(1, -1))
            self._load()  # the autoencoder may have pushed it out
            return self._model.model.process_latent_in(latents.float().clone())

    def encode_captions(self, captions: Sequence[str]) -> list[Conditions]:
        """See ``Trainable.encode_captions``."""
        found = [self._encoded(as_prompt(caption)) for caption in captions]
        with torch.no_grad():
            self._load()  # the text encoders may have pushed it out
        return found

    def conditions(self, texts: Sequence[Conditions], sizes: Sequence[PictureSize]) -> Conditions:
        """See ``Trainable.conditions``."""
        found = [self._told(text, size) for text, size in zip(texts, sizes, strict=True)]
        first, *others = found
        for name in first:
            _refuse_uneven([one[name] for one in found])
        return {name: first[name].concat([one[name] for one in others]) for name in first}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """See ``Trainable.predict``; ComfyUI's estimate of the clean latents, solved for it."""
        sigma = self._sampling.sigmas.to(self.device)[timesteps]
        level = sigma.view(-1, 1, 1, 1)
        if self.levels.prediction == "flow":
            clean = self._model.model.apply_model(noisy, sigma, **conditions)
            return (noisy - clean) / level
        spread = (level**2 + 1).sqrt()
        x = noisy * spread
        clean = self._model.model.apply_model(x, sigma, **conditions)
        if self.levels.prediction == "epsilon":
            return (x - clean) / level
        return (x / spread**2 - clean) * spread / level

    def preview(
        self, prompt: str, config: PreviewConfig, size: tuple[int, int], seed: int, lora: Lora
    ) -> Tensor:
        """See ``Trainable.preview``."""
        stack = [StackItem(lora, 1.0, 1.0)]
        found = self._host.apply(self._model, self._clip, stack, "report")
        try:
            positive, negative = (
                found.clip.encode_from_tokens_scheduled(found.clip.tokenize(text))
                for text in (prompt, config.negative)
            )
            width, height = size
            (latent,) = nodes.common_ksampler(
                found.model,
                seed,
                config.steps,
                config.cfg,
                config.sampler,
                config.scheduler,
                positive,
                negative,
                {"samples": self._empty(height, width)},
            )
            return self._vae.decode(latent["samples"])[0].clone()
        finally:
            self._load()

    def _empty(self, height: int, width: int) -> Tensor:
        channels = self._model.model.latent_format.latent_channels
        return torch.zeros(1, channels, height // PIXELS, width // PIXELS)

    def _load_as_nodes_do(self) -> None:
        """Take LoRAs of earlier runs off the weights; those are tensors of inference mode."""
        with torch.inference_mode():
            self._load()

    def _load(self) -> None:
        patchers = [self._model, self._clip.patcher]
        comfy.model_management.load_models_gpu(patchers, force_full_load=True)

    def _encoded(self, caption: str) -> Conditions:
        found = self._clip.encode_from_tokens(self._clip.tokenize(caption), return_dict=True)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def _told(self, text: Conditions, size: PictureSize) -> dict[str, Any]:
        height, width = size.trained
        told = {
            **{name: value for name, value in text.items() if name != "cond"},
            "cross_attn": text["cond"],
            "noise": self._empty(height, width).to(self.device),
            "device": self.device,
            "height": size.original[0],
            "width": size.original[1],
            "crop_h": size.crop[0],
            "crop_w": size.crop[1],
            "target_height": height,
            "target_width": width,
        }
        found = self._model.model.extra_conds(**told)
        return {
            name: one.process_cond(1, device=self.device, area=None) for name, one in found.items()
        }


def _static(model: Any) -> Any:
    """The MODEL with all weights in memory.

    ComfyUI 0.30: dynamic patchers stream weights in and out of each layer, which no gradient
    survives; their clone without it is loaded anew from its file.

    Raises:
        LoraError: its loader left no way to load it again.
    """
    if not getattr(model, "is_dynamic", lambda: False)():
        return model
    if model.cached_patcher_init is None:
        raise LoraError(
            "This model cannot be loaded as a whole, which training needs.",
            {"Model": type(model.model).__name__, "Its patcher": type(model).__name__},
            "take one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram.",
        )
    return model.clone(disable_dynamic=True)


def _static_clip(clip: Any) -> Any:
    """The CLIP with all weights in memory; see ``_static``."""
    if _static(clip.patcher) is clip.patcher:
        return clip
    static = clip.clone(disable_dynamic=True)
    static.cond_stage_model = static.patcher.model
    return static


def _read_weights(text_encoders: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor for name, tensor in text_encoders.state_dict().items() if not _is_unread(name)
    }


def _is_unread(name: str) -> bool:
    """Whether a weight of a text encoder changes nothing.

    ComfyUI: only CLIP-G's projection is read. Files may lack the others, whose memory is then not
    initialised (0.30).
    """
    return "text_projection" in name and not name.startswith("clip_g.")


def trainable_weights(names: ComfyNames) -> dict[str, dict[str, Target]]:
    """For each part, name of a module in it to its weight; norms and biases are left out."""
    prefixes = {"unet": ""} if "unet" in names.components else {}
    prefixes |= {component: f"{name}." for name, component in names.encoders.items()}
    found: dict[str, dict[str, Target]] = {part: {} for part in prefixes}
    for target in names.weights():
        prefix, name = prefixes.get(target.component), target.target_key
        is_whole = target.rows is None and name.endswith(".weight") and len(target.shape) > 1
        is_ours = prefix is not None and name.startswith(prefix) and not _is_unread(name)
        if prefix is not None and is_whole and is_ours:
            found[target.component][name[len(prefix) : -len(".weight")]] = target
    return found


def _refuse_uneven(conditions: Sequence[Any]) -> None:
    """ComfyUI: texts of cross-attention are repeated to one length, others never are."""
    first, *others = conditions
    is_repeated = isinstance(first, comfy.conds.CONDCrossAttn)
    if is_repeated or all(first.can_concat(one) for one in others):
        return
    lengths = ", ".join(str(tuple(one.size())) for one in conditions)
    raise LoraError(
        "Captions of different lengths do not go into one batch of this model.",
        {"What the text encoders made of them": lengths},
        "take run.batch_size = 1, or shorten the longest captions.",
    )
