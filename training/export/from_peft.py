"""PEFT's layers of a live model, as plain factors."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ...lora_core.errors import LoraError, UnsupportedFormatError
from ...lora_core.models.target import Target
from .trained import TrainedModule


def trained_modules(
    model: nn.Module,
    targets: Mapping[str, Target],
    adapter_name: str = "default",
    initial: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> list[TrainedModule]:
    """Take the factors off PEFT's layers, linear or convolution.

    The tensors are the live ones, not copies.

    Args:
        model: Where the adapter was injected.
        targets: The trained weight of each module, by the module's path in ``model``.
        adapter_name: PEFT's name of the adapter.
        initial: ``(down, up)`` by path, as they were when PiSSA had taken them off the base.

    Raises:
        UnsupportedFormatError: a layer is of a PEFT variant that LoRA files have no form for.
        LoraError: a path has no such adapter, or a layer of the model has one that is in no target.
    """
    layers = dict(_layers(model, adapter_name))
    if layers.keys() != targets.keys():
        raise LoraError(
            f"The layers of the adapter {adapter_name!r} are not the trained targets.",
            {
                "Targets without a layer": _some(targets.keys() - layers.keys()),
                "Layers without a target": _some(layers.keys() - targets.keys()),
            },
            "give the target of every layer that PEFT injected.",
        )
    starts = initial or {}
    return [
        trained_module(path, layers[path], target, adapter_name, starts.get(path))
        for path, target in targets.items()
    ]


def _layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in module.scaling:
            yield path, module


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) or "none"


def trained_module(
    path: str,
    layer: Any,  # noqa: ANN401  PEFT has no types
    target: Target,
    adapter_name: str,
    initial: tuple[Tensor, Tensor] | None,
) -> TrainedModule:
    """``trained_modules`` of one layer."""
    _require_plain(path, layer, adapter_name)
    magnitudes = layer.lora_magnitude_vector
    magnitude = magnitudes[adapter_name].weight if adapter_name in magnitudes else None
    return TrainedModule(
        target,
        layer.lora_A[adapter_name].weight.detach(),
        layer.lora_B[adapter_name].weight.detach(),
        float(layer.scaling[adapter_name]),
        magnitude.detach().flatten() if magnitude is not None else None,
        initial,
    )


def _require_plain(path: str, layer: Any, adapter_name: str) -> None:  # noqa: ANN401
    problem = None
    variant = type(layer.lora_variant.get(adapter_name)).__name__
    if adapter_name not in layer.lora_A:
        problem = "an embedding"
    elif variant != "NoneType" and not variant.startswith("Dora"):
        problem = f"the variant {variant}"
    elif getattr(layer, "fan_in_fan_out", False):
        problem = "fan_in_fan_out (a transposed weight)"
    elif layer.lora_B[adapter_name].bias is not None:
        problem = "lora_bias (a bias of B)"
    if problem:
        raise UnsupportedFormatError(
            f"{path}: this PEFT layer cannot be exported.",
            {"Layer": type(layer).__name__, "Because of": problem},
            "train linear layers and convolutions with plain LoRA, rsLoRA, PiSSA or DoRA.",
        )
