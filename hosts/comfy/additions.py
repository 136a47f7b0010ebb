"""What LoRAs that run unmerged add to the output of one module."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own habit

from ...lora_core.adapters.matrices import Matrix
from ...lora_core.adapters.oft import Rotation
from ...lora_core.patching.fused import row_chunks
from ...lora_core.patching.products import exact_products
from ...lora_core.patching.views import View
from .adapter import FusedLoraAdapter
from .merge_on_device import pristine_weight
from .names import PatchKey
from .quantised_error import values_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# ComfyUI: MiniMax folds an activation into this layer and does not call its forward (0.30).
_NEVER_CALLED = {("comfy.ldm.minimax.model", "MLP"): "fc2"}

Place = tuple[int, int, int]
"""Dimension of an output, first channel, number of channels."""


@dataclass(frozen=True)
class Addition:
    """What is added to the output of one module, float32.

    Shapes: ``down`` is ``(rank, in, *kernel)``, ``up`` is ``(out, rank)``, each of ``dense`` is
    ``(out, in * kernel)``, made in each forward of its factors; ``bias`` is ``(out,)``. Of a DoRA,
    the module's own output without its bias is added too: times ``rows`` ``(out,)``, and as it is
    for an input times ``columns`` ``(in,)``. Of an OFT, what that output gains by ``turns``.

    Attributes:
        channels: Position of the channels in the module's input and output, from the end.
        outputs: First channel of the output it is added to, and how many.
        inputs: First channel of the input it reads, and how many.
        kernel: Of a convolution, what follows the channels in its weight's shape.
    """

    channels: int
    outputs: tuple[int, int]
    inputs: tuple[int, int] | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    dense: tuple[Matrix, ...] = ()
    bias: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None
    turns: tuple[Rotation, ...] = ()
    kernel: tuple[int, ...] = ()

    def tensors(self) -> list[Tensor]:
        """All of its factors."""
        single = (self.down, self.up, self.bias, self.rows, self.columns)
        several = [tensor for matrix in self.dense for tensor in matrix.tensors()]
        several += [tensor for turn in self.turns for tensor in turn.tensors()]
        return several + [tensor for tensor in single if tensor is not None]

    @property
    def reads_input(self) -> bool:
        """Whether its factors, or a bias, add anything by the module's input alone."""
        factors = (self.down, self.bias, self.columns)
        return bool(self.dense) or any(tensor is not None for tensor in factors)

    @property
    def reads_output(self) -> bool:
        """Whether it needs the module's output."""
        return self.rows is not None or bool(self.turns)

    @property
    def place(self) -> Place:
        """Where in the output it is added."""
        return (self.channels, *self.outputs)

    def along(self, numbers: Tensor, device: torch.device) -> Tensor:
        """One number per channel, shaped to meet a module's input or output."""
        return numbers.to(device).reshape(-1, *(1,) * (-1 - self.channels))


def can_run(
    patcher: Any, name: str, parameter: str, key: PatchKey, adapter: FusedLoraAdapter
) -> bool:
    """Whether a patch of ``name.parameter`` is an addition to the output of module ``name``."""
    if not isinstance(key, str) and len(key) > 2:
        return False
    module = patcher.model.get_submodule(name)
    parent, _, last = name.rpartition(".")
    kind = type(patcher.model.get_submodule(parent))
    if _NEVER_CALLED.get((kind.__module__, kind.__name__)) == last:
        return False
    if adapter.depends_on_base:
        # An output tells what the base gives, but not what some inputs give, nor beside patches.
        is_of_inputs = not isinstance(key, str) and key[1][0] != 0
        if is_of_inputs or adapter.turns_columns or f"{name}.{parameter}" in patcher.patches:
            return False
    return parameter in ("weight", "bias") and _shape(module) is not None


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    """``(out, in, *kernel)`` of a module whose output is linear in its weight, or None.

    Of the module, not of its weight: packed weights have other shapes. An embedding is none:
    ComfyUI reads the weights of some (CLIP's positions) without calling them.
    """
    if isinstance(module, _CONVOLUTIONS):
        if module.groups > 1:
            return None
        return (module.out_channels, module.in_channels, *module.kernel_size)
    # ComfyUI: the Linear of mixed precision is not torch's (0.30).
    if isinstance(module, nn.Linear) or type(module).__name__ == "Linear":
        return (module.out_features, module.in_features)
    return None


def addition_of(
    patcher: Any, name: str, parameter: str, key: PatchKey, adapter: FusedLoraAdapter
) -> Addition:
    """What a patch that ``can_run`` adds; reads the base weight where there is a DoRA.

    Raises:
        UnusableModelError: an undo record does not lead back to that base.
    """
    shape = _shape(patcher.model.get_submodule(name))
    assert shape is not None
    channels = 1 - len(shape)
    outputs, inputs = (0, shape[0]), None
    if not isinstance(key, str):
        dim, start, length = key[1]
        shape = (*shape[:dim], length, *shape[dim + 1 :])
        outputs, inputs = ((start, length), None) if dim == 0 else (outputs, (start, length))
    if parameter == "bias":
        (view,) = adapter.update(_like(shape[:1]), 1.0).views
        return Addition(channels, outputs, bias=_factor(view.delta(slice(None)).reshape(-1)))
    (view,) = adapter.update(_like(shape), 1.0).views
    turns, view = tuple(turn.rotation for turn in view.turns), replace(view, turns=())
    if view.magnitudes:
        view = _measured(patcher, f"{name}.{parameter}", outputs, adapter)
    kernel = math.prod(shape[2:])
    return Addition(
        channels,
        outputs,
        inputs,
        down=None if view.down is None else _factor(view.down.reshape(-1, *shape[1:])),
        up=None if view.up is None else _factor(view.up),
        dense=tuple(dense.mapped(_factor) for dense in view.dense),
        rows=None if view.row_gain is None else _factor(view.row_gain[:, 0]),
        columns=None if view.column_gain is None else _factor(view.column_gain[0, ::kernel]),
        turns=tuple(turn.mapped(_factor) for turn in turns),
        kernel=shape[2:],
    )


def _measured(patcher: Any, key: str, outputs: tuple[int, int], adapter: FusedLoraAdapter) -> View:
    """The update of some rows of a weight but for turns, norms taken on the load device."""
    base = values_of(patcher, key, pristine_weight(patcher, key)).narrow(0, *outputs)
    with exact_products():
        (view,) = adapter.update(base, 1.0).views
        chunks = row_chunks(tuple(base.shape))
        return replace(view, turns=()).measured(lambda start, stop: base[start:stop], chunks)


def _like(shape: tuple[int, ...]) -> Tensor:
    """A tensor of a shape, without memory."""
    return torch.empty(()).expand(shape)


def _factor(tensor: Tensor) -> nn.Parameter:
    # A Parameter: moving the module that holds it moves this very object.
    return nn.Parameter(tensor.cpu().contiguous(), requires_grad=False)


def update_of(
    module: nn.Module,
    forward: Callable[..., Tensor],
    addition: Addition,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Place, Tensor]:
    """What a module's output gains by its input alone, float32, and where.

    ``forward`` is the module's own; the addition ``reads_input``.
    """
    if addition.bias is not None:
        return addition.place, addition.along(addition.bias, x.device)
    if isinstance(module, _CONVOLUTIONS):
        update = _conv_update(module, addition, x.float(), kwargs)
    else:
        update = _linear_update(addition, x.float())
    if addition.columns is not None:
        scaled = (x.float() * addition.along(addition.columns, x.device)).to(x.dtype)
        output = forward(scaled, *args, **kwargs)
        update = update + _without_bias(module, addition, output)
    return addition.place, update


def row_update(module: nn.Module, addition: Addition, output: Tensor) -> tuple[Place, Tensor]:
    """What a module's output gains by the output itself, float32, and where.

    The addition ``reads_output``.
    """
    values = _without_bias(module, addition, output)
    updates = [_turned(turn, values, addition.channels) for turn in addition.turns]
    if addition.rows is not None:
        updates.append(values * addition.along(addition.rows, output.device))
    return addition.place, sum(updates[1:], updates[0])


def _turned(rotation: Rotation, values: Tensor, channels: int) -> Tensor:
    """What the channels of an output gain by a rotation."""
    first = values.movedim(channels, 0)
    turns = rotation.mapped(lambda tensor: tensor.to(values.device))
    return turns.change(first.flatten(1)).reshape(first.shape).movedim(0, channels)


def _without_bias(module: nn.Module, addition: Addition, output: Tensor) -> Tensor:
    """The channels of an output that an addition is of, float32, less the module's bias."""
    values = output.narrow(*addition.place).float()
    bias: Tensor | None = module.bias
    if bias is None:
        return values
    return values - addition.along(bias.narrow(0, *addition.outputs).float(), output.device)


def _linear_update(addition: Addition, x: Tensor) -> Tensor:
    """What a linear module's output gains, ``(*, out)``."""
    x = _read(addition, x)
    updates = [F.linear(x, _weight(dense, x)) for dense in addition.dense]
    if addition.down is not None and addition.up is not None:
        updates.append(F.linear(F.linear(x, addition.down.to(x.device)), addition.up.to(x.device)))
    return sum(updates[1:], updates[0])


def _conv_update(
    module: nn.Module, addition: Addition, x: Tensor, kwargs: Mapping[str, Any]
) -> Tensor:
    """What a convolution's output gains, ``(*, out, *spatial)``."""
    x = _read(addition, x)
    # The module's own: its stride, padding, dilation and padding mode.
    convolve: Callable[..., Tensor] = module._conv_forward  # type: ignore[assignment]
    updates = [
        convolve(x, _weight(dense, x).unflatten(1, (-1, *addition.kernel)), None, **kwargs)
        for dense in addition.dense
    ]
    if addition.down is not None and addition.up is not None:
        low = convolve(x, addition.down.to(x.device), None, **kwargs)
        low = low.movedim(addition.channels, -1)
        updates.append(F.linear(low, addition.up.to(x.device)).movedim(-1, addition.channels))
    return sum(updates[1:], updates[0])


def _weight(matrix: Matrix, x: Tensor) -> Tensor:
    """A matrix whole, on the device of an input; one at a time is made of its factors."""
    return matrix.mapped(lambda tensor: tensor.to(x.device)).rows(slice(None))


def _read(addition: Addition, x: Tensor) -> Tensor:
    return x if addition.inputs is None else x.narrow(addition.channels, *addition.inputs)
