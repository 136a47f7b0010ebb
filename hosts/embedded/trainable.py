"""The embedded host's model as the trainer sees it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...lora_core.errors import LoraError
from ...lora_core.lora import Lora
from ...lora_core.models.target import Target
from ...lora_core.stack import StackItem
from ...training.config import PreviewConfig
from ...training.dataset.captions import as_prompt
from ...training.hashes import weights_hash
from ...training.objective import NoiseLevels
from ...training.trainable import Conditions, PictureSize
from .applying import applied, table_of
from .autoencoder import decoded, encoded
from .handles import Clip, Model, Vae
from .sampling import SAMPLERS, SCHEDULERS, sample
from .sampling.schedule import scaled_linear_schedule
from .text import encode, encode_for_training

_PREFIXES = {"unet": "unet.", "te1": "text_encoder.", "te2": "text_encoder_2."}
_UNREAD = "text_encoder.text_projection.weight"
_PIXELS = 8  # that a latent covers


class EmbeddedTrainable:
    """See ``Trainable``.

    Args:
        model: Without LoRAs.
        clip: Without LoRAs.
        vae: Of the same family.

    Raises:
        LoraError: LoRAs are on the model, or it is one that is not trained here.
    """

    def __init__(self, model: Model, clip: Clip, vae: Vae) -> None:
        _refuse_lineage(model, clip)
        _refuse_inpainting(model)
        self._model, self._clip, self._vae = model, clip, vae
        self._family = model.part.family
        for handle in (model, clip):
            handle.carry()
        self.table = table_of(model, clip)
        encoders = dict(zip(("te1", "te2"), clip.part.encoders.values(), strict=False))
        self.parts: Mapping[str, nn.Module] = {"unet": model.part.unet, **encoders}
        self.weights = trainable_weights(self.table.targets)
        sigmas = scaled_linear_schedule().sigmas.double()
        self.levels = NoiseLevels.of_alphas(model.part.prediction, 1 / (sigmas**2 + 1))
        self.device = next(model.part.unet.parameters()).device
        text_hash = weights_hash(clip.base.weights)
        self.identity = f"{weights_hash(model.base.weights)}+{text_hash}"
        scale = model.part.latent_scale
        self.autoencoder = f"{weights_hash(vae.part.vae.state_dict())} scale {scale}"
        self.text = f"{text_hash} skip {clip.skip}"
        self.clip_skip = clip.skip
        self.samplers, self.schedulers = SAMPLERS, SCHEDULERS

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """The base without LoRAs; the modules stay in evaluation mode, whose dropouts are off."""
        self._model.carry()
        self._clip.carry()
        yield

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """See ``Trainable.encode_pictures``."""
        found = encoded(self._vae.part, pictures.to(self.device).add(1).div(2).movedim(1, -1))
        return found.clone() * self._model.part.latent_scale

    def encode_captions(self, captions: Sequence[str]) -> list[Conditions]:
        """See ``Trainable.encode_captions``."""
        prompts = [as_prompt(caption) for caption in captions]
        found = [encode_for_training(self._clip.part, one, self._clip.skip) for one in prompts]
        return [
            {"states": one.states, **({} if one.pooled is None else {"pooled": one.pooled})}
            for one in found
        ]

    def conditions(self, texts: Sequence[Conditions], sizes: Sequence[PictureSize]) -> Conditions:
        """See ``Trainable.conditions``."""
        tokens = math.lcm(*(text["states"].shape[1] for text in texts))
        states = torch.cat([_repeated(text["states"], tokens) for text in texts])
        if self._family != "sdxl":
            return {"states": states}
        pooled = torch.cat([text["pooled"] for text in texts])
        numbers = [[*size.original, *size.crop, *size.trained] for size in sizes]
        ids = torch.tensor(numbers, dtype=torch.float32, device=self.device)
        return {"states": states, "pooled": pooled, "time_ids": ids}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """See ``Trainable.predict``."""
        unet = self._model.part.unet
        dtype = next(unet.parameters()).dtype
        extra = None
        if "time_ids" in conditions:
            extra = {"text_embeds": conditions["pooled"], "time_ids": conditions["time_ids"]}
        states = conditions["states"].to(dtype)
        call = unet(noisy.to(dtype), timesteps, states, added_cond_kwargs=extra, return_dict=False)
        return call[0].float()

    def preview(
        self,
        prompt: str,
        config: PreviewConfig,
        size: tuple[int, int],
        seed: int,
        lora: Lora | None,
    ) -> Tensor:
        """See ``Trainable.preview``; without a LoRA it is the base's picture."""
        stack = [StackItem(lora, 1.0, 1.0)] if lora is not None else []
        found = applied(self._model, self._clip, self.table, stack, "report", "auto")
        width, height = size
        try:
            text = found.clip.loaded()
            prompts = [encode(text, said, self._clip.skip) for said in (prompt, config.negative)]
            latents = sample(
                found.model.loaded(),
                *prompts,
                torch.zeros(1, 4, height // _PIXELS, width // _PIXELS),
                seed,
                config.steps,
                config.cfg,
                config.sampler,
                config.scheduler,
            )
        finally:
            self._model.carry()
            self._clip.carry()
        return decoded(self._vae.part, latents)[0].clone()


def trainable_weights(targets: Iterable[Target]) -> dict[str, dict[str, Target]]:
    """For each part, name of a module in it to its weight; norms and biases are left out.

    So is the projection of the first text encoder, which no model here reads.
    """
    found: dict[str, dict[str, Target]] = {}
    for target in targets:
        name = target.target_key
        is_matrix = name.endswith(".weight") and len(target.shape) > 1
        for part, prefix in _PREFIXES.items():
            if name.startswith(prefix) and is_matrix and name != _UNREAD:
                found.setdefault(part, {})[name[len(prefix) : -len(".weight")]] = target
    return found


def _repeated(states: Tensor, tokens: int) -> Tensor:
    """States ``(1, tokens, width)``; attention over them is that over a repetition of them."""
    return states.repeat(1, tokens // states.shape[1], 1)


def _refuse_lineage(model: Model, clip: Clip) -> None:
    names = [item.lora.name for item in (*model.lineage, *clip.lineage)]
    if names:
        raise LoraError(
            "LoRAs are on this model, so what is trained would only fit beside them.",
            {"LoRAs": ", ".join(dict.fromkeys(names))},
            "connect the checkpoint itself, or save the merged model and train on that.",
        )


def _refuse_inpainting(model: Model) -> None:
    channels = model.part.unet.config["in_channels"]
    if channels != 4 or model.part.family == "sdxl-refiner":
        raise LoraError(
            "This model is not trained here.",
            {"Family": model.part.family, "Channels of its input": channels},
            "take a text-to-image model: SD 1.5, SD 2 or SDXL.",
        )
