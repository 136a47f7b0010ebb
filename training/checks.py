"""Values that cannot be meant, and options that would do nothing, are refused before a run."""

import dataclasses
import math
from collections.abc import Iterable, Iterator

from ..lora_core.errors import LoraError, UnknownChoiceError
from .config import OptimizerConfig, PreviewConfig, TrainConfig
from .kinds import LYCORIS, idle_fields, require_library
from .objective import NoiseLevels, timestep_range
from .optimizer import OPTIMIZERS, READS

_LATENT = 8  # pixels of one
_POLYNOMIAL_END = 1e-7  # to which diffusers' schedule falls
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
    check_settings(config)
    _refuse_wrong(_ranges_of_model(config, levels))
    _refuse_idle(_idle_here(config, levels, has_validation))


def check_settings(config: TrainConfig) -> None:
    """Look at what neither model nor pictures decide.

    Raises:
        LoraError: as ``check``, or a library is missing.
    """
    require_library(config.adapter.method)
    if config.optimizer.name not in OPTIMIZERS:
        raise UnknownChoiceError("optimizer", config.optimizer.name, OPTIMIZERS)
    _refuse_wrong(_numbers(config))
    _refuse_wrong(_ranges(config))
    _refuse_idle(_idle_adapter(config))
    _refuse_idle(_idle(config))


def _refuse_wrong(checks: Iterable[_Check]) -> None:
    for name, value, is_fine, expected in checks:
        if not is_fine:
            raise LoraError(
                f"{name} cannot be {value!r}.", {"Expected": expected}, "give it such a value."
            )


def _refuse_idle(checks: Iterable[_Check]) -> None:
    for name, value, acts, needs in checks:
        if not acts:
            raise LoraError(
                f"{name} would do nothing.",
                {name: value, "Needs": needs},
                f"see to {needs}, or leave {name} out.",
            )


def _ranges_of_model(config: TrainConfig, levels: NoiseLevels) -> Iterator[_Check]:
    last = len(levels.signal) - 1
    first, end = timestep_range(levels, config.objective)
    fits = 0 <= first <= end <= last
    yield "objective.first_timestep and last_timestep", (first, end), fits, f"0 to {last}, in order"


def _numbers(config: TrainConfig) -> Iterator[_Check]:
    """TOML knows ``nan`` and ``inf``."""
    for part in dataclasses.fields(config):
        for name, value in vars(getattr(config, part.name)).items():
            is_float = isinstance(value, float)
            yield f"{part.name}.{name}", value, not is_float or math.isfinite(value), "a number"
    for rule in config.adapter.rules:
        for name in ("alpha", "rate"):
            value = getattr(rule, name)
            yield f"adapter.rules.{name}", value, math.isfinite(value or 0), "a number"


def _ranges(config: TrainConfig) -> Iterator[_Check]:
    adapter, optimizer, run = config.adapter, config.optimizer, config.run
    objective, validation = config.objective, config.validation
    yield "adapter.rank", adapter.rank, adapter.rank >= 1, "1 or more"
    yield "adapter.alpha", adapter.alpha, adapter.alpha is None or adapter.alpha > 0, "above 0"
    yield "adapter.dropout", adapter.dropout, 0 <= adapter.dropout < 1, "0 to below 1"
    factor = adapter.factor
    yield "adapter.factor", factor, factor == -1 or factor >= 1, "-1, or 1 or more"
    yield "adapter.constraint", adapter.constraint, adapter.constraint >= 0, "0 or more"
    for rule in adapter.rules:
        yield "adapter.rules.rank", rule.rank, (rule.rank or 0) >= 0, "0 or more"
        yield "adapter.rules.rate", rule.rate, rule.rate is None or rule.rate > 0, "above 0"
        yield "adapter.rules.alpha", rule.alpha, rule.alpha is None or rule.alpha > 0, "above 0"
    yield from _ranges_of_optimizer(optimizer)
    if optimizer.name == "prodigy":
        yield from _one_rate(config)
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
    yield "validation.every", validation.every, validation.every >= 0, "0 or more"
    yield "validation.timesteps", validation.timesteps, validation.timesteps >= 1, "1 or more"
    size = config.preview.size or (_LATENT, _LATENT)
    fits = all(side > 0 and side % _LATENT == 0 for side in size)
    yield "preview.size", config.preview.size, fits, f"multiples of {_LATENT}"
    yield "preview.steps", config.preview.steps, config.preview.steps >= 1, "1 or more"
    yield "preview.every", config.preview.every, config.preview.every >= 0, "0 or more"
    yield "checkpoint.keep", config.checkpoint.keep, config.checkpoint.keep >= 1, "1 or more"
    yield "checkpoint.every", config.checkpoint.every, config.checkpoint.every >= 0, "0 or more"


def _ranges_of_optimizer(optimizer: OptimizerConfig) -> Iterator[_Check]:
    rate, text, plus = optimizer.rate, optimizer.text_encoder_rate, optimizer.lora_plus
    least = _POLYNOMIAL_END if optimizer.schedule == "polynomial" else 0
    yield "optimizer.rate", rate, rate > least, f"above {least}"
    yield "optimizer.text_encoder_rate", text, text is None or text > 0, "above 0"
    yield "optimizer.lora_plus", plus, plus > 0, "above 0"
    yield "optimizer.weight_decay", optimizer.weight_decay, optimizer.weight_decay >= 0, "0 or more"
    betas = optimizer.betas
    yield "optimizer.betas", betas, all(0 <= beta < 1 for beta in betas), "0 to below 1, each"
    yield "optimizer.epsilon", optimizer.epsilon, optimizer.epsilon >= 0, "0 or more"
    yield "optimizer.clip_norm", optimizer.clip_norm, optimizer.clip_norm >= 0, "0 or more"
    yield "optimizer.warmup_steps", optimizer.warmup_steps, optimizer.warmup_steps >= 0, "0 or more"
    yield "optimizer.cycles", optimizer.cycles, optimizer.cycles >= 1, "1 or more"
    yield "optimizer.power", optimizer.power, optimizer.power > 0, "above 0"


def _one_rate(config: TrainConfig) -> Iterator[_Check]:
    """Prodigy finds one rate for all (arXiv:2306.06101)."""
    optimizer, why = config.optimizer, "prodigy finds one rate for all"
    usual = (None, optimizer.rate)
    text, plus = optimizer.text_encoder_rate, optimizer.lora_plus
    yield "optimizer.text_encoder_rate", text, text in usual, f"optimizer.rate: {why}"
    yield "optimizer.lora_plus", plus, plus == 1, f"1: {why}"
    for rule in config.adapter.rules:
        yield "adapter.rules.rate", rule.rate, rule.rate in usual, f"optimizer.rate: {why}"


def _idle_here(config: TrainConfig, levels: NoiseLevels, has_validation: bool) -> Iterator[_Check]:
    gamma, every = config.objective.min_snr_gamma, config.validation.every
    is_flow = levels.prediction == "flow"
    yield "objective.min_snr_gamma", gamma, not (gamma and is_flow), "a model of noise or velocity"
    yield (
        "validation.every",
        every,
        has_validation or not every,
        "dataset.validation or dataset.validation_folder",
    )


def _idle_adapter(config: TrainConfig) -> Iterator[_Check]:
    """What the method does not read."""
    adapter, plus = config.adapter, config.optimizer.lora_plus
    idle = idle_fields(adapter.method, adapter.full_matrix)
    defaults = {each.name: each.default for each in dataclasses.fields(adapter)}
    for name, needs in idle.items():
        value = getattr(adapter, name)
        yield f"adapter.{name}", value, value == defaults[name], needs
    for rule in adapter.rules:
        is_read = "alpha" not in idle or rule.alpha is None
        yield "adapter.rules.alpha", rule.alpha, is_read, idle.get("alpha", "")
        is_read = "rank" not in idle or not rule.rank
        yield "adapter.rules.rank", rule.rank, is_read, idle.get("rank", "")
    has_two_sides = adapter.method not in LYCORIS
    needs = 'adapter.method = "lora" or "dora"'
    yield "optimizer.lora_plus", plus, has_two_sides or plus == 1, needs


def _idle_optimizer(config: TrainConfig) -> Iterator[_Check]:
    """What the optimiser and its schedule do not read."""
    optimizer = config.optimizer
    defaults = {each.name: each.default for each in dataclasses.fields(optimizer)}
    for name, readers in READS.items():
        value = getattr(optimizer, name)
        acts = optimizer.name in readers or value == defaults[name]
        yield f"optimizer.{name}", value, acts, "one of " + ", ".join(readers)
    second = optimizer.betas[1]
    is_read = optimizer.name != "sgd" or second == defaults["betas"][1]
    yield "optimizer.betas[1]", second, is_read, "an optimizer of two averages"
    text = optimizer.text_encoder_rate
    trains_text = bool(config.adapter.text_encoder)
    needs = "adapter.text_encoder"
    yield "optimizer.text_encoder_rate", text, trains_text or text is None, needs
    restarts = optimizer.schedule == "cosine_with_restarts"
    yield "optimizer.cycles", optimizer.cycles, restarts or optimizer.cycles == 1, "restarts"
    polynomial = optimizer.schedule == "polynomial"
    yield "optimizer.power", optimizer.power, polynomial or optimizer.power == 1, "polynomial"


def _idle(config: TrainConfig) -> Iterator[_Check]:
    run, objective = config.run, config.objective
    validation, preview = config.validation, config.preview
    yield from _idle_optimizer(config)
    yield "run.epochs", run.epochs, not (run.epochs and run.steps), "run.steps = 0"
    is_square = objective.loss == "mse"
    yield (
        "objective.huber_delta",
        objective.huber_delta,
        not is_square or objective.huber_delta == 0.1,
        'objective.loss = "huber" or "smooth_l1"',
    )
    measures = bool(validation.every)
    for name, default in (("patience", 0), ("timesteps", 4)):
        value = getattr(validation, name)
        yield f"validation.{name}", value, measures or value == default, "validation.every"
    yield "preview.every", preview.every, bool(preview.prompts) or not preview.every, "prompts"
    for each in dataclasses.fields(PreviewConfig):
        value = getattr(preview, each.name)
        acts = bool(preview.every) or value == each.default
        yield f"preview.{each.name}", value, acts, "preview.every"
