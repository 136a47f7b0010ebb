"""Factors in a live model, for as long as a run lasts."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import groupby

from torch import nn

from ..lora_core.errors import LoraError
from .config import AdapterConfig, Precision
from .dropout import Draws
from .factors import Factors
from .kinds import LYCORIS
from .lycoris_factors import lycoris_factors
from .peft_factors import peft_factors
from .targets import TrainedTarget


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
        LoraError: a module cannot take the factors, or their library is missing.
    """
    targets = list(targets)
    _refuse_bytes(parts, targets, config)
    put = lycoris_factors if config.method in LYCORIS else peft_factors
    with ExitStack() as restore:
        for part in parts.values():
            restore.enter_context(_frozen(part))
        factors: list[Factors] = []
        for component, own in groupby(targets, lambda target: target.component):
            made = put(parts[component], list(own), config, seed, draws, precision)
            factors += restore.enter_context(made)
        yield tuple(factors)


@contextmanager
def ejected(factors: Iterable[Factors]) -> Iterator[None]:
    """The bare modules in their places, for a preview; afterwards the factors again."""
    with ExitStack() as restore:
        for each in factors:
            restore.enter_context(each.ejected())
        yield


def _refuse_bytes(
    parts: Mapping[str, nn.Module], targets: Iterable[TrainedTarget], config: AdapterConfig
) -> None:
    """PiSSA would round the rest of a weight to 8 bits; PEFT's DoRA does not compute with them."""
    if config.method != "dora" and config.start != "pissa":
        return
    asked = 'method = "dora"' if config.method == "dora" else 'start = "pissa"'
    for target in targets:
        weight = parts[target.component].get_submodule(target.module).weight
        if weight.dtype.itemsize == 1:
            raise LoraError(
                f"adapter.{asked} does not go with weights of 8 bits.",
                {"Weight": target.target.canonical, "Stored as": weight.dtype},
                "load the model in fp16 or bf16, or take another method and start.",
            )


@contextmanager
def _frozen(part: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
    part.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
