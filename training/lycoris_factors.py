"""LyCORIS' modules beside the modules of a live model: LoHa, LoKr and OFT."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .config import AdapterConfig, Precision
from .dropout import Draws, SeededDropout
from .export import TrainedLycoris
from .factors import OfTarget
from .kinds import require_library
from .randomness import seed_of
from .targets import TrainedTarget


class LycorisFactors(OfTarget):
    """See ``Factors``. The module keeps its place and its names; only its forward is another.

    Args:
        trained: The module's target.
        module: The live module.
        layer: LyCORIS' module for it.
        config: The run's.
        precision: Of the forward pass.
    """

    def __init__(
        self,
        trained: TrainedTarget,
        module: nn.Module,
        layer: Any,  # noqa: ANN401  LyCORIS has no types
        config: AdapterConfig,
        precision: Precision,
    ) -> None:
        self.trained, self.layer = trained, layer
        self._module, self._config, self._precision = module, config, precision
        self._own_forward = vars(module).get("forward")
        self._bare = module.forward

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By LyCORIS' names."""
        return dict(self.layer.named_parameters())

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The module adds what the factors say."""
        with _forward_is(self._module, self._forward):
            yield

    @contextmanager
    def ejected(self) -> Iterator[None]:
        """See ``Factors``."""
        with _forward_is(self._module, self._own_forward):
            yield

    def learnt(self, is_live: bool = False) -> TrainedLycoris:
        """See ``Factors``."""
        is_oft = self._config.method == "oft"
        return TrainedLycoris(
            self.trained.target,
            {role: parameter.detach() for role, parameter in self.parameters.items()},
            self._config.constraint if is_oft else float(self.layer.alpha),
        )

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        base = self._bare(x, *args, **kwargs)
        change = self._turned(base) if self._config.method == "oft" else self._added(x)
        return base + change.to(base.dtype)

    def _added(self, x: Tensor) -> Tensor:
        """What LoHa and LoKr make of the inputs, by factors of the inputs' dtype."""
        return self.layer.bypass_forward_diff(x.float() if self._precision == "fp32" else x)

    def _turned(self, base: Tensor) -> Tensor:
        """What OFT adds to the outputs, without the bias: a weight is turned, and no bias.

        In float32: a half has few digits for a turn's diagonal, which is near 1.
        """
        from lycoris.functional.diag_oft import bypass_forward_diff

        bias, is_convolution = self._module.bias, isinstance(self._module, nn.Conv2d)
        with torch.autocast(base.device.type, enabled=False):
            outputs = base.float()
            if bias is not None:
                shape = (-1, 1, 1) if is_convolution else (-1,)
                outputs = outputs - bias.to(outputs).reshape(shape)
            return bypass_forward_diff(
                None,
                outputs,
                self.layer.oft_blocks,
                self.layer.rescale if self._config.rescale else None,
                constraint=self.layer.constraint,
                need_transpose=is_convolution,
            )


@contextmanager
def lycoris_factors(
    part: nn.Module,
    targets: Sequence[TrainedTarget],
    config: AdapterConfig,
    seed: int,
    draws: Draws,
    precision: Precision,
) -> Iterator[list[LycorisFactors]]:
    """Put LyCORIS' modules beside those of a component; see ``injected``.

    Raises:
        LoraError: LyCORIS is missing.
    """
    require_library(config.method)
    made = [_made(part, target, config, seed, draws, precision) for target in targets]
    with ExitStack() as restore:
        for each in made:
            restore.enter_context(each.installed())
        yield made


def _made(
    part: nn.Module,
    target: TrainedTarget,
    config: AdapterConfig,
    seed: int,
    draws: Draws,
    precision: Precision,
) -> LycorisFactors:
    name, module = target.target.canonical, part.get_submodule(target.module)
    with _quiet(), torch.random.fork_rng(devices=[]):  # LyCORIS draws from the global numbers
        torch.default_generator.manual_seed(seed_of(seed, "init", name))
        layer = _kind(config.method)(
            name,
            module,
            lora_dim=target.rank,
            alpha=target.alpha,
            use_tucker=config.tucker,
            decompose_both=config.decompose_both,
            factor=config.factor,
            full_matrix=config.full_matrix,
            constraint=config.constraint,
            rescaled=config.rescale,
            bypass_mode=True,
        )
    if config.dropout:
        layer.drop = SeededDropout(config.dropout, draws, name)
    layer.to(module.weight.device)
    return LycorisFactors(target, module, layer, config, precision)


def _kind(method: str) -> Callable[..., Any]:
    import lycoris

    kinds = {
        "loha": lycoris.LohaModule,
        "lokr": lycoris.LokrModule,
        "oft": lycoris.DiagOFTModule,
    }
    return kinds[method]


@contextmanager
def _quiet() -> Iterator[None]:
    """LyCORIS writes how it splits sides on standard output, which is a command's answer."""
    logger = logging.getLogger("LyCORIS")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _forward_is(module: nn.Module, forward: Callable[..., Tensor] | None) -> Iterator[None]:
    """A module's own forward; None leaves that of its class."""
    before = vars(module).get("forward")
    try:
        _set_forward(module, forward)
        yield
    finally:
        _set_forward(module, before)


def _set_forward(module: nn.Module, forward: Callable[..., Tensor] | None) -> None:
    if forward is not None:
        module.forward = forward
    else:
        vars(module).pop("forward", None)
