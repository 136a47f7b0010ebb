"""PEFT's layers in a live model, for as long as a run lasts."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..lora_core.errors import LoraError
from .config import AdapterConfig, Precision
from .dropout import Draws, SeededDropout
from .randomness import generator, seed_of
from .targets import TrainedTarget

ADAPTER = "default"


@dataclass(frozen=True, eq=False)
class Factors:
    """What is trained of one module; float32 parameters, live.

    Attributes:
        trained: The module.
        layer: PEFT's layer.
        initial: PiSSA's first down and up, which the base has lost; else None.
    """

    trained: TrainedTarget
    layer: Any
    initial: tuple[Tensor, Tensor] | None = None

    @property
    def component(self) -> str:
        """See ``Moved``."""
        return self.trained.component

    @property
    def rate(self) -> float | None:
        """See ``Moved``."""
        return self.trained.rate

    @property
    def down(self) -> nn.Parameter:
        """A, ``(rank, in, *kernel)``."""
        return self.layer.lora_A[ADAPTER].weight

    @property
    def up(self) -> nn.Parameter:
        """B, ``(out, rank)``; with 1 x 1 for a convolution."""
        return self.layer.lora_B[ADAPTER].weight

    @property
    def magnitude(self) -> nn.Parameter | None:
        """DoRA's, of PEFT's shape."""
        vectors = self.layer.lora_magnitude_vector
        return vectors[ADAPTER].weight if ADAPTER in vectors else None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All of them by role: ``down``, ``up``, ``magnitude``."""
        named = {"down": self.down, "up": self.up, "magnitude": self.magnitude}
        return {role: parameter for role, parameter in named.items() if parameter is not None}


@contextmanager
def injected(
    parts: Mapping[str, nn.Module],
    targets: Iterable[TrainedTarget],
    config: AdapterConfig,
    seed: int,
    draws: Draws,
    precision: Precision = "fp32",
) -> Iterator[tuple[Factors, ...]]:
    """Put factors beside the targets' weights; on every exit the modules are as they were.

    Everything else in the parts is frozen meanwhile.

    Args:
        parts: Live module of each component.
        targets: In the order of the model.
        config: The run's.
        seed: Each module's factors start from (seed, canonical name), whatever else is trained.
        draws: Tells the dropout which samples are in a batch.
        precision: Of the forward pass; other than ``"fp32"`` it runs under autocast.

    Raises:
        LoraError: PEFT has no layer for a module.
    """
    by_component = {name: list(own) for name, own in groupby(targets, lambda t: t.component)}
    with ExitStack() as restore:
        for part in parts.values():
            restore.enter_context(_frozen(part))
        factors: list[Factors] = []
        for component, own in by_component.items():
            part = parts[component]
            restore.enter_context(_modules_put_back(part, own))
            if config.start == "pissa":
                restore.enter_context(_weights_put_back(part, own))
            factors += _inject(part, own, config, seed, draws)
        for each in factors:  # autocast casts without keeping a float32 copy of each input
            each.layer.cast_input_dtype_enabled = precision == "fp32"
        yield tuple(factors)


@contextmanager
def ejected(parts: Mapping[str, nn.Module], factors: Iterable[Factors]) -> Iterator[None]:
    """The bare modules in their places, for a preview; afterwards the factors again."""
    with ExitStack() as restore:
        for each in factors:
            part, name = parts[each.trained.component], each.trained.module
            put = _set(part, name)
            restore.callback(put, each.layer)
            put(each.layer.base_layer)
        yield


def _inject(
    part: nn.Module,
    targets: list[TrainedTarget],
    config: AdapterConfig,
    seed: int,
    draws: Draws,
) -> list[Factors]:
    from peft import LoraConfig, inject_adapter_in_model

    alpha = config.alpha or config.rank
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        target_modules=[t.module for t in targets],
        rank_pattern=_exceptions({t.module: t.rank for t in targets}, config.rank),
        alpha_pattern=_exceptions({t.module: t.alpha for t in targets}, alpha),
        use_rslora=config.rslora,
        use_dora=config.method == "dora",
        init_lora_weights=True,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global numbers
        torch.manual_seed(seed_of(seed, "peft"))
        inject_adapter_in_model(settings, part, ADAPTER)
    return [_started(part, target, config, seed, draws) for target in targets]


def _exceptions(values: Mapping[str, float], usual: float) -> dict[str, Any]:
    """Patterns for the modules that have another value, as PEFT matches them: one a value."""
    return {
        "^(?:" + "|".join(re.escape(name) for name in names if values[name] == value) + ")": value
        for names in [[name for name in values if values[name] != usual]]
        for value in dict.fromkeys(values[name] for name in names)
    }


def _started(
    part: nn.Module, target: TrainedTarget, config: AdapterConfig, seed: int, draws: Draws
) -> Factors:
    from peft.tuners.lora import LoraLayer

    layer = part.get_submodule(target.module)
    if not isinstance(layer, LoraLayer):
        raise LoraError(
            f"PEFT has no layer for {target.target.canonical}.",
            {"Type": type(layer).__name__},
            "leave this weight out of the targets.",
        )
    for parameter in _own_parameters(layer):
        parameter.data = parameter.data.float()  # half precision steps round to nothing
        parameter.requires_grad_(True)
    if config.dropout:
        layer.lora_dropout[ADAPTER] = SeededDropout(config.dropout, draws, target.target.canonical)
    factors = Factors(target, layer)
    if config.start == "pissa":
        return _principal(factors)
    numbers = generator(seed, "init", target.target.canonical)
    fresh = torch.empty(factors.down.shape)
    nn.init.kaiming_uniform_(fresh, a=5**0.5, generator=numbers)
    factors.down.data.copy_(fresh)
    return factors


@torch.no_grad()
def _principal(factors: Factors) -> Factors:
    """Move the largest singular vectors of the weight into its factors.

    Source: arXiv:2404.02948, eqs. 2 to 4, over the scale. The rest is rounded to the weight's
    own dtype.
    """
    weight, down, up = factors.layer.base_layer.weight, factors.down, factors.up
    scale, rank = factors.layer.scaling[ADAPTER], down.shape[0]
    left, values, right = torch.linalg.svd(weight.float().flatten(1), full_matrices=False)
    if len(values) < rank:
        raise LoraError(
            f"{factors.trained.target.canonical} has fewer singular vectors than the rank.",
            {"Rank": rank, "Singular vectors": len(values)},
            "take a smaller rank, or leave this weight out of the targets.",
        )
    root = (values[:rank] / scale).sqrt()
    up.copy_((left[:, :rank] * root).reshape(up.shape))
    down.copy_((root[:, None] * right[:rank]).reshape(down.shape))
    start = scale * (up.flatten(1) @ down.flatten(1))
    weight.copy_(weight.float() - start.reshape(weight.shape))
    return Factors(factors.trained, factors.layer, (down.clone(), up.clone()))


def _own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    return [value for name, value in layer.named_parameters() if name.startswith("lora_")]


@contextmanager
def _frozen(part: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
    part.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _modules_put_back(part: nn.Module, targets: list[TrainedTarget]) -> Iterator[None]:
    originals = {t.module: part.get_submodule(t.module) for t in targets}
    modes = {name: module.training for name, module in originals.items()}
    known = dict(vars(part))
    try:
        yield
    finally:
        for name, module in originals.items():
            _set(part, name)(module)
            module.train(modes[name])
        for name in set(vars(part)) - set(known):  # PEFT leaves its settings on the model
            delattr(part, name)


@contextmanager
def _weights_put_back(part: nn.Module, targets: list[TrainedTarget]) -> Iterator[None]:
    """PiSSA takes its start out of the weights."""
    modules = [part.get_submodule(t.module) for t in targets]
    kept = [(module, module.weight.detach().clone()) for module in modules]
    try:
        yield
    finally:
        for module, copy in kept:  # a preview on another device may have made it another tensor
            module.weight.data.copy_(copy)


def _set(part: nn.Module, name: str) -> Callable[[nn.Module], None]:
    owner, _, leaf = name.rpartition(".")
    parent = part.get_submodule(owner)
    return lambda module: setattr(parent, leaf, module)
