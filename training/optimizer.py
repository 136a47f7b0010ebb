"""Optimisers and schedules of the libraries, and the groups of factors they move."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..lora_core.errors import LoraError, UnknownChoiceError
from .config import OptimizerConfig
from .moved import Moved

_Groups = list[dict[str, Any]]


def make_optimizer(
    factors: Iterable[Moved], config: OptimizerConfig, steps: int
) -> tuple[Optimizer, LRScheduler]:
    """The optimiser over all factors, and its schedule by optimiser steps.

    Args:
        factors: All that is trained.
        config: Which, and with what rates.
        steps: Optimiser steps of the run.

    Raises:
        LoraError: an unknown name, a library that is missing, or a schedule that cannot act.
    """
    from diffusers.optimization import get_scheduler

    check_warmup(config, steps)
    maker = OPTIMIZERS.get(config.name)
    if maker is None:
        raise UnknownChoiceError("optimizer", config.name, OPTIMIZERS)
    optimizer = maker(_groups(factors, config), config)
    scheduler = get_scheduler(
        config.schedule,
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=steps,
        num_cycles=config.cycles,
        power=config.power,
    )
    return optimizer, scheduler


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All that an optimiser moves, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _groups(factors: Iterable[Moved], config: OptimizerConfig) -> _Groups:
    """One group a rate; B has ``lora_plus`` times the rate of A (arXiv:2402.12354)."""
    by_rate: dict[float, list[nn.Parameter]] = {}
    for each in factors:
        rate = _rate(each, config)
        for role, parameter in each.parameters.items():
            own = rate * config.lora_plus if role == "up" else rate
            by_rate.setdefault(own, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()]


def _rate(moved: Moved, config: OptimizerConfig) -> float:
    if moved.rate is not None:
        return moved.rate
    is_text = moved.component != "unet"
    own = config.text_encoder_rate
    return own if is_text and own is not None else config.rate


def check_warmup(config: OptimizerConfig, steps: int) -> None:
    """Raise LoraError for a warm-up that cannot act, or does not end before the run."""
    if config.warmup_steps and config.schedule == "constant":
        raise LoraError(
            "A constant rate has no warm-up.",
            {"optimizer.warmup_steps": config.warmup_steps},
            'take schedule = "constant_with_warmup", or warmup_steps = 0.',
        )
    if config.warmup_steps >= steps:
        raise LoraError(
            "The rate would still be rising when the run ends.",
            {"optimizer.warmup_steps": config.warmup_steps, "Optimiser steps": steps},
            "take fewer warm-up steps, or more steps.",
        )


def _adamw(groups: _Groups, config: OptimizerConfig) -> Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=config.rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def _adam(groups: _Groups, config: OptimizerConfig) -> Optimizer:
    return torch.optim.Adam(groups, lr=config.rate, betas=config.betas, eps=config.epsilon)


def _sgd(groups: _Groups, config: OptimizerConfig) -> Optimizer:
    momentum, _ = config.betas
    return torch.optim.SGD(
        groups, lr=config.rate, momentum=momentum, weight_decay=config.weight_decay
    )


def _adafactor(groups: _Groups, config: OptimizerConfig) -> Optimizer:
    return torch.optim.Adafactor(groups, lr=config.rate, weight_decay=config.weight_decay)


def _adamw8bit(groups: _Groups, config: OptimizerConfig) -> Optimizer:
    module = _library("bitsandbytes.optim", "bitsandbytes")
    return module.AdamW8bit(
        groups,
        lr=config.rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def _prodigy(groups: _Groups, config: OptimizerConfig) -> Optimizer:
    module = _library("prodigyopt", "prodigyopt")
    return module.Prodigy(
        groups, lr=config.rate, betas=config.betas, weight_decay=config.weight_decay
    )


def _lion(groups: _Groups, config: OptimizerConfig) -> Optimizer:
    module = _library("lion_pytorch", "lion-pytorch")
    return module.Lion(groups, lr=config.rate, betas=config.betas, weight_decay=config.weight_decay)


def _library(module: str, package: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LoraError(
            f"This optimizer needs {package}.", {"Cause": error}, f"pip install {package}"
        ) from error


READS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "weight_decay": ("adamw", "sgd", "adafactor", "adamw8bit", "prodigy", "lion"),
        "betas": ("adamw", "adam", "sgd", "adamw8bit", "prodigy", "lion"),
        "epsilon": ("adamw", "adam", "adamw8bit"),
    }
)
"""The options of ``OptimizerConfig`` that some optimisers alone read, and which."""

OPTIMIZERS: Mapping[str, Callable[[_Groups, OptimizerConfig], Optimizer]] = MappingProxyType(
    {
        "adamw": _adamw,
        "adam": _adam,
        "sgd": _sgd,
        "adafactor": _adafactor,
        "adamw8bit": _adamw8bit,
        "prodigy": _prodigy,
        "lion": _lion,
    }
)
