"""LORA_MODEL: core's dict of tensors, ours carrying the parsed LoRA."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..lora_core.errors import LoraError
from ..lora_core.formats.kohya import kohya_key
from ..lora_core.lora import Lora, lora_from_tensors

_CORE_SUFFIXES = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "mid": "lora_mid.weight",
    "magnitude": "dora_scale",
}


class LoraModel(dict):
    """A LoRA's tensors under names that ComfyUI's ``load_lora`` reads.

    A ``dict`` for core's nodes, filled when somebody first looks; ``lora`` is the parsed LoRA for
    ours, until another node writes into the dict (``is_changed``). Names that core does not know
    (current diffusers and PEFT) become kohya's.
    """

    def __init__(self, lora: Lora) -> None:
        super().__init__()
        self.lora = lora
        self.is_changed = False
        self._is_filled = False

    def _filled(self) -> "LoraModel":
        if not self._is_filled:
            dict.update(self, _core_tensors(self.lora))
            self._is_filled = True
        return self

    def __getitem__(self, key: str) -> Tensor:
        return dict.__getitem__(self._filled(), key)

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self._filled())

    def __len__(self) -> int:
        return dict.__len__(self._filled())

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self._filled(), key)

    def keys(self) -> Any:  # noqa: D102  dict's own
        return dict.keys(self._filled())

    def values(self) -> Any:  # noqa: D102  dict's own
        return dict.values(self._filled())

    def items(self) -> Any:  # noqa: D102  dict's own
        return dict.items(self._filled())

    def get(self, key: str, default: Any = None) -> Any:  # noqa: D102  dict's own
        return dict.get(self._filled(), key, default)

    def __setitem__(self, key: str, value: Tensor) -> None:
        dict.__setitem__(self._changed(), key, value)

    def __delitem__(self, key: str) -> None:
        dict.__delitem__(self._changed(), key)

    def pop(self, key: str, *default: Any) -> Any:  # noqa: D102  dict's own
        return dict.pop(self._changed(), key, *default)

    def update(self, *args: Any, **kwargs: Any) -> None:  # noqa: D102  dict's own
        dict.update(self._changed(), *args, **kwargs)

    def _changed(self) -> "LoraModel":
        """The dict for a writer: from now on its tensors count, not the LoRA it was made of."""
        self.is_changed = True
        return self._filled()

    def copy(self) -> dict[str, Tensor]:
        """A plain dict of the tensors."""
        return dict(self.items())


def _core_tensors(lora: Lora) -> dict[str, Tensor]:
    data = lora.file.read_many(lora.file.tensors)
    named = {key: data[key] for key in lora.unknown_keys}
    for module in lora.modules.values():
        key = kohya_key(module.lora_key)
        if key == module.lora_key:
            named.update({name: data[name] for name in module.keys.values()})
        else:
            for role, name in module.keys.items():
                named[f"{key}.{_CORE_SUFFIXES.get(role, role)}"] = data[name]
        if module.alpha and "alpha" not in module.keys:
            named[f"{key}.alpha"] = torch.tensor(float(module.alpha))
        if {"lokr_w1", "lokr_w2"} <= module.keys.keys() and module.scale not in (None, 1.0):
            # No alpha counts beside two full matrices, in core or LyCORIS; PEFT's config scales.
            first = module.keys["lokr_w1"]
            named.pop(first, None)
            named[f"{key}.lokr_w1"] = data[first].float() * module.scale
        for part in module.parts:
            if part.axis is not None and "down" in module.keys:
                name = module.keys["magnitude"]
                named.pop(name, None)
                dims = len(lora.shape(module.keys["down"]))
                named[f"{key}.{_CORE_SUFFIXES['magnitude']}"] = _for_core(
                    data[name], part.axis, dims
                )
    return named


def _for_core(magnitude: Tensor, axis: int, dims: int) -> Tensor:
    """Magnitudes shaped ``(out, 1, ..)`` or ``(1, in, ..)``: ComfyUI spreads a flat one wrongly."""
    shape = [1] * dims
    shape[axis] = -1
    return magnitude.reshape(shape)


def lora_of(lora_model: object, name: str = "lora_model") -> Lora:
    """The parsed LoRA of a ``LORA_MODEL``, ours or core's plain dict.

    Args:
        lora_model: What arrived on the socket; never changed.
        name: Names a plain dict, as ``<memory>/NAME``.

    Raises:
        LoraError: it is neither.
    """
    if isinstance(lora_model, LoraModel) and not lora_model.is_changed:
        return lora_model.lora
    if isinstance(lora_model, dict):
        tensors = {key: value for key, value in lora_model.items() if isinstance(value, Tensor)}
        return lora_from_tensors(name, tensors)
    raise LoraError(
        "The LORA_MODEL is not a dict of tensors.",
        {"Got": type(lora_model).__name__},
        "connect the output of a node that loads or trains a LoRA.",
    )
