"""How much of the LoRAs' effect is lost when merged weights are quantised again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import get_key_weight
from torch import Tensor

from .merge_on_device import pristine_weight
from .model_kinds import is_quantised


@dataclass(frozen=True)
class QuantisedError:
    """One layer.

    Attributes:
        key: Its weight.
        share: ``||merged as stored - merged exactly|| / ||delta||``, dimensionless.
    """

    key: str
    share: float


def quantised_errors(patchers: Iterable[Any]) -> list[QuantisedError]:
    """The errors of all patched weights that are quantised."""
    return [error for patcher in patchers for error in _errors(patcher)]


def _errors(patcher: Any) -> Iterator[QuantisedError]:
    for key, patches in patcher.patches.items():
        pristine = pristine_weight(patcher, key)
        if not is_quantised(pristine):
            continue
        base = values_of(patcher, key, pristine)
        exact = comfy.lora.calculate_weight(patches, base.clone(), key)
        stored = values_of(patcher, key, _stored(patcher, key))
        delta = (exact - base).norm()
        yield QuantisedError(key, float((stored - exact).norm() / delta) if delta else 0.0)


def _stored(patcher: Any, key: str) -> Tensor:
    """The weight as it is written: patched already, or patched for the file alone."""
    if key in patcher.backup:
        return get_key_weight(patcher.model, key)[0]
    return patcher.patch_weight_to_device(key, patcher.load_device, return_weight=True)


def values_of(patcher: Any, key: str, weight: Tensor) -> Tensor:
    """What stored numbers mean, a float32 copy on the load device."""
    _, _, convert = get_key_weight(patcher.model, key)
    moved = weight.to(patcher.load_device)
    values = convert(moved, inplace=False) if convert is not None else moved
    return values.to(torch.float32, copy=True)
