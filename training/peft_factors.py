"""PEFT's layers in a live model: LoRA and DoRA."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..lora_core.errors import LoraError
from .config import AdapterConfig, Precision
from .dropout import Draws, SeededDropout
from .export import TrainedModule
from .export.from_peft import trained_module
from .factors import OfTarget
from .randomness import generator, seed_of
from .targets import TrainedTarget

ADAPTER = "default"


@dataclass(frozen=True, eq=False)
class PeftFactors(OfTarget):
    """See ``Factors``.

    Attributes:
        part: Live module of the component.
        trained: The module.
        layer: PEFT's layer.
        initial: PiSSA's first down and up, which the base has lost; else None.
    """

    part: nn.Module
    trained: TrainedTarget
    layer: Any
    initial: tuple[Tensor, Tensor] | None = None

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
        """``down``, ``up`` and ``magnitude``."""
        named = {"down": self.down, "up": self.up, "magnitude": self.magnitude}
        return {role: parameter for role, parameter in named.items() if parameter is not None}

    @contextmanager
    def ejected(self) -> Iterator[None]:
        """See ``Factors``."""
        put = _set(self.part, self.trained.module)
        try:
            put(self.layer.base_layer)
            yield
        finally:
            put(self.layer)

    def learnt(self, is_live: bool = False) -> TrainedModule:
        """See ``Factors``; PiSSA's start is in the factors, and not in the base of the run."""
        initial = None if is_live else self.initial
        return trained_module(
            self.trained.module, self.layer, self.trained.target, ADAPTER, initial
        )


@contextmanager
def peft_factors(
    part: nn.Module,
    targets: list[TrainedTarget],
    config: AdapterConfig,
    seed: int,
    draws: Draws,
    precision: Precision,
) -> Iterator[list[PeftFactors]]:
    """Put PEFT's layers into a component; see ``injected``.

    Raises:
        LoraError: PEFT has no layer for a module.
    """
    with ExitStack() as restore:
        restore.enter_context(_modules_put_back(part, targets))
        if config.start == "pissa":
            restore.enter_context(_weights_put_back(part, targets))
        factors = _inject(part, targets, config, seed, draws)
        for each in factors:  # autocast casts without keeping a float32 copy of each input
            each.layer.cast_input_dtype_enabled = precision == "fp32"
        yield factors


def _inject(
    part: nn.Module,
    targets: list[TrainedTarget],
    config: AdapterConfig,
    seed: int,
    draws: Draws,
) -> list[PeftFactors]:
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
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global numbers of the CPU
        torch.default_generator.manual_seed(seed_of(seed, "peft"))
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
) -> PeftFactors:
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
    if config.method == "dora":
        _count_norms_in_float32(layer)
    factors = PeftFactors(part, target, layer)
    if config.start == "pissa":
        return _principal(factors)
    numbers = generator(seed, "init", target.target.canonical)
    fresh = torch.empty(factors.down.shape)
    nn.init.kaiming_uniform_(fresh, a=5**0.5, generator=numbers)
    factors.down.data.copy_(fresh)
    return factors


@torch.no_grad()
def _count_norms_in_float32(layer: Any) -> None:  # noqa: ANN401  PEFT has no types
    """PEFT rounds them to the weight's or the inputs' dtype, by 2e-3 of the weight in bf16."""
    vector = layer.lora_magnitude_vector[ADAPTER]
    norm_of = vector.get_weight_norm

    def exact(weight: Tensor, lora_weight: Tensor, scaling: float, **_: object) -> Tensor:
        return norm_of(weight.float(), lora_weight.float(), scaling)

    vector.get_weight_norm = exact
    weight = layer.get_base_layer().weight
    vector.weight.data = exact(weight, weight.new_zeros(()), 1.0)


@torch.no_grad()
def _principal(factors: PeftFactors) -> PeftFactors:
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
    return replace(factors, initial=(down.clone(), up.clone()))


def _own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    return [value for name, value in layer.named_parameters() if name.startswith("lora_")]


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
