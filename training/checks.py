"""Values that cannot be meant, and options that would do nothing, are refused before a run."""

from collections.abc import Iterator

from ..lora_core.errors import LoraError
from .config import TrainConfig
from .objective import NoiseLevels

_LATENT = 8  # pixels of one
_Check = tuple[str, object, bool, str]
"""Name, value, whether it is fine, and what is."""


def check(config: TrainConfig, levels: NoiseLevels, has_validation: bool) -> None:
    """Look at a whole configuration.

    Args:
        config: The run's.
        levels: Of the model.
        has_validation: Whether the dataset keeps pictures apart.

    Raises:
        LoraError: names the first option that cannot be used, or that would do nothing.
    """
    for name, value, is_fine, expected in (*_ranges(config, levels),):
        if not is_fine:
            raise LoraError(
                f"{name} cannot be {value!r}.", {"Expected": expected}, "give it such a value."
            )
    for name, value, acts, needs in _idle(config, levels, has_validation):
        if not acts:
            raise LoraError(
                f"{name} would do nothing.",
                {name: value, "Needs": needs},
                f"see to {needs}, or leave {name} out.",
            )


def _ranges(config: TrainConfig, levels: NoiseLevels) -> Iterator[_Check]:
    adapter, optimizer, run = config.adapter, config.optimizer, config.run
    objective, validation = config.objective, config.validation
    last = len(levels.signal) - 1
    yield "adapter.rank", adapter.rank, adapter.rank >= 1, "1 or more"
    yield "adapter.alpha", adapter.alpha, adapter.alpha is None or adapter.alpha > 0, "above 0"
    yield "adapter.dropout", adapter.dropout, 0 <= adapter.dropout < 1, "0 to below 1"
    for rule in adapter.rules:
        yield "adapter.rules.rank", rule.rank, (rule.rank or 0) >= 0, "0 or more"
        yield "adapter.rules.rate", rule.rate, rule.rate is None or rule.rate > 0, "above 0"
        yield "adapter.rules.alpha", rule.alpha, rule.alpha is None or rule.alpha > 0, "above 0"
    yield "optimizer.rate", optimizer.rate, optimizer.rate > 0, "above 0"
    text = optimizer.text_encoder_rate
    yield "optimizer.text_encoder_rate", text, text is None or text > 0, "above 0"
    yield "optimizer.lora_plus", optimizer.lora_plus, optimizer.lora_plus > 0, "above 0"
    yield "optimizer.clip_norm", optimizer.clip_norm, optimizer.clip_norm >= 0, "0 or more"
    yield "optimizer.warmup_steps", optimizer.warmup_steps, optimizer.warmup_steps >= 0, "0 or more"
    yield "optimizer.cycles", optimizer.cycles, optimizer.cycles >= 1, "1 or more"
    yield "run.steps", run.steps, run.steps >= 0, "0 or more"
    yield "run.epochs", run.epochs, run.steps > 0 or run.epochs > 0, "1 or more, or run.steps"
    yield "run.batch_size", run.batch_size, run.batch_size >= 1, "1 or more"
    yield "run.accumulation", run.accumulation, run.accumulation >= 1, "1 or more"
    yield "run.ema", run.ema, 0 <= run.ema < 1, "0 to below 1"
    depth = run.gradient_checkpointing
    yield "run.gradient_checkpointing", depth, depth >= 0, "0 or more"
    yield "objective.huber_delta", objective.huber_delta, objective.huber_delta > 0, "above 0"
    yield "objective.min_snr_gamma", objective.min_snr_gamma, objective.min_snr_gamma >= 0, "0 up"
    yield "objective.noise_offset", objective.noise_offset, objective.noise_offset >= 0, "0 up"
    first, end = objective.first_timestep, objective.last_timestep
    end = last if end is None else end
    fits = 0 <= first <= end <= last
    yield "objective.first_timestep and last_timestep", (first, end), fits, f"0 to {last}, in order"
    yield "validation.every", validation.every, validation.every >= 0, "0 or more"
    yield "validation.timesteps", validation.timesteps, validation.timesteps >= 1, "1 or more"
    size = config.preview.size or (_LATENT, _LATENT)
    fits = all(side > 0 and side % _LATENT == 0 for side in size)
    yield "preview.size", config.preview.size, fits, f"multiples of {_LATENT}"
    yield "preview.steps", config.preview.steps, config.preview.steps >= 1, "1 or more"
    yield "preview.every", config.preview.every, config.preview.every >= 0, "0 or more"
    yield "checkpoint.keep", config.checkpoint.keep, config.checkpoint.keep >= 1, "1 or more"
    yield "checkpoint.every", config.checkpoint.every, config.checkpoint.every >= 0, "0 or more"


def _idle(config: TrainConfig, levels: NoiseLevels, has_validation: bool) -> Iterator[_Check]:
    adapter, optimizer, run = config.adapter, config.optimizer, config.run
    objective, validation, preview = config.objective, config.validation, config.preview
    is_flow = levels.prediction == "flow"
    trains_text = bool(adapter.text_encoder)
    yield (
        "optimizer.text_encoder_rate",
        optimizer.text_encoder_rate,
        trains_text or optimizer.text_encoder_rate is None,
        "adapter.text_encoder",
    )
    restarts = optimizer.schedule == "cosine_with_restarts"
    yield "optimizer.cycles", optimizer.cycles, restarts or optimizer.cycles == 1, "restarts"
    polynomial = optimizer.schedule == "polynomial"
    yield "optimizer.power", optimizer.power, polynomial or optimizer.power == 1, "polynomial"
    yield "run.epochs", run.epochs, not (run.epochs and run.steps), "run.steps = 0"
    is_square = objective.loss == "mse"
    yield (
        "objective.huber_delta",
        objective.huber_delta,
        not is_square or objective.huber_delta == 0.1,
        'objective.loss = "huber" or "smooth_l1"',
    )
    gamma = objective.min_snr_gamma
    yield "objective.min_snr_gamma", gamma, not (gamma and is_flow), "a model of noise or velocity"
    yield (
        "validation.every",
        validation.every,
        has_validation or not validation.every,
        "dataset.validation or dataset.validation_folder",
    )
    yield (
        "validation.patience",
        validation.patience,
        bool(validation.every) or not validation.patience,
        "validation.every",
    )
    yield "preview.every", preview.every, bool(preview.prompts) or not preview.every, "prompts"
    yield "preview.prompts", preview.prompts, bool(preview.every) or not preview.prompts, "every"
