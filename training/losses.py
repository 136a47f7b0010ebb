"""The loss of samples: noise, the model's answer, and what it should have been."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import TrainConfig
from .dropout import Draws
from .feed import Batch, SampleKey
from .objective import drawn_noise, drawn_timestep, sample_losses, snr_weights, timestep_range
from .trainable import Conditions, Trainable

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Losses:
    """Losses of one run.

    Args:
        model: Loaded, with the factors injected.
        config: The run's.
        draws: What the dropout reads.
    """

    def __init__(self, model: Trainable, config: TrainConfig, draws: Draws) -> None:
        self._model, self._config, self._draws = model, config, draws

    def of(self, batch: Batch, keys: Sequence[SampleKey]) -> Tensor:
        """The weighted loss of each sample, ``(n,)``, with its graph."""
        objective, seed, levels = self._config.objective, self._config.run.seed, self._model.levels
        times = torch.stack([drawn_timestep(levels, objective, seed, *key) for key in keys])
        shape = tuple(batch.latents.shape[1:])
        noise = torch.stack([drawn_noise(shape, objective, seed, *key) for key in keys])
        losses = self._errors(batch, noise, times, keys)
        weights = snr_weights(levels, times, objective.min_snr_gamma) * batch.weights
        return losses * weights.to(losses.device)

    @torch.no_grad()
    def of_validation(self, batches: Sequence[Batch]) -> float:
        """The mean loss on pictures kept apart, at the same noise every time."""
        count, objective = self._config.validation.timesteps, self._config.objective
        first, last = timestep_range(self._model.levels, objective)
        places = first + torch.linspace(0, 1, count + 2)[1:-1] * (last - first)
        losses = [
            self._errors(batch, self._fixed_noise(batch, index, number), place.repeat(len(batch)))
            for index, batch in enumerate(batches)
            for number, place in enumerate(places.long())
        ]
        return float(torch.cat([loss.cpu() for loss in losses]).mean())

    def _fixed_noise(self, batch: Batch, index: int, number: int) -> Tensor:
        """Of one batch at one noise level, ``(n, channels, height, width)``."""
        objective, seed = self._config.objective, self._config.run.seed
        shape = tuple(batch.latents.shape[1:])
        places = [("validation", index, number, place) for place in range(len(batch))]
        return torch.stack([drawn_noise(shape, objective, seed, *place) for place in places])

    def _errors(
        self, batch: Batch, noise: Tensor, times: Tensor, keys: Sequence[SampleKey] = ()
    ) -> Tensor:
        """The loss of each sample, ``(n,)``; without keys nothing is dropped out."""
        device, levels = self._model.device, self._model.levels
        latents, noise, times = (x.to(device) for x in (batch.latents, noise, times))
        with self._autocast():
            texts = batch.texts or self._encoded(batch.captions, keys)
            on_device = [{name: row.to(device) for name, row in text.items()} for text in texts]
            conditions = self._model.conditions(on_device, batch.sizes)
            noisy = levels.mixed(latents, noise, times)
            with self._draws.of(keys):
                answer = self._model.predict(noisy, times, conditions)
        mask = None if batch.mask is None else batch.mask.to(device)
        wanted = levels.wanted(latents, noise, times)
        return sample_losses(answer, wanted, self._config.objective, mask)

    def _encoded(self, captions: Sequence[str], keys: Sequence[SampleKey]) -> list[Conditions]:
        """Captions one by one: each has as many chunks as it needs."""
        texts: list[Conditions] = []
        for index, caption in enumerate(captions):
            with self._draws.of(keys[index : index + 1]):
                texts += self._model.encode_captions([caption])
        return texts

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES.get(self._config.run.precision)
        kind = self._model.device.type
        return torch.autocast(kind, dtype or torch.bfloat16, enabled=dtype is not None)
