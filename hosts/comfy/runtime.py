"""LoRAs applied unmerged: each forward adds ``up @ (down @ x)``, and no weight is touched."""

import copy
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import comfy.model_patcher
import torch
from comfy.patcher_extension import CallbacksMP, PatcherInjection
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own habit

from .adapter import FusedLoraAdapter
from .names import PatchKey

_KEY = "lora_workbench_runtime"
_INJECTED = "_lora_workbench_injected"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# ComfyUI: MiniMax folds an activation into this layer and does not call its forward (0.30).
_NEVER_CALLED = {("comfy.ldm.minimax.model", "MLP"): "fc2"}


@dataclass(frozen=True)
class _Addition:
    """What is added to the output of one module, float32.

    Shapes: ``down`` is ``(rank, in, *kernel)``, ``up`` is ``(out, rank)``, each of ``dense`` is
    ``(out, in, *kernel)``, ``bias`` is ``(out,)``.

    Attributes:
        channels: Position of the channels in the module's input and output, from the end.
        outputs: First channel of the output it is added to, and how many.
        inputs: First channel of the input it reads, and how many.
    """

    channels: int
    outputs: tuple[int, int]
    inputs: tuple[int, int] | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    dense: tuple[Tensor, ...] = ()
    bias: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All of its factors."""
        return [t for t in (self.down, self.up, *self.dense, self.bias) if t is not None]


class _Injected(NamedTuple):
    """What is in a model; kept on the inner model, which clones share.

    Attributes:
        owner: ``id`` of the patcher that injected.
        wrapped: Module, its wrapper, and the instance's own forward before it, in order.
    """

    owner: int
    wrapped: list[tuple[nn.Module, Callable[..., Tensor], Callable[..., Tensor] | None]]


class RuntimeInjection(PatcherInjection):
    """All LoRAs that run unmerged on one model: the only injection of ours on a patcher.

    Attributes:
        additions: By module name, in the order they were applied.
        patched: The kind of module of each weight that is patched instead.
    """

    def __init__(
        self, additions: Mapping[str, tuple[_Addition, ...]], patched: tuple[str, ...]
    ) -> None:
        # No method of this object: that cycle would keep the factors until a garbage collection.
        super().__init__(inject=partial(_inject, additions), eject=_leave_to_callback)
        self.additions = additions
        self.patched = patched


def run_unmerged(
    patcher: Any, patches: Mapping[PatchKey, FusedLoraAdapter]
) -> dict[PatchKey, FusedLoraAdapter]:
    """Put patches on a fresh clone of ours as additions to its modules' outputs.

    Additions of the clone's parents stay: each ``run_unmerged`` adds to one injection.

    Returns:
        The patches that cannot run unmerged, for ``add_patches``.

    Raises:
        LoraError: a factor cannot be read.
    """
    additions: dict[str, list[_Addition]] = {}
    rest: dict[PatchKey, FusedLoraAdapter] = {}
    for key, adapter in patches.items():
        name, _, parameter = (key if isinstance(key, str) else key[0]).rpartition(".")
        if _can_run(patcher.model, name, parameter, key):
            addition = _addition(patcher.model.get_submodule(name), parameter, key, adapter)
            additions.setdefault(name, []).append(addition)
        else:
            rest[key] = adapter
    names = (key if isinstance(key, str) else key[0] for key in rest)
    kinds = (type(patcher.model.get_submodule(name.rpartition(".")[0])).__name__ for name in names)
    _add_injection(patcher, additions, tuple(kinds))
    return rest


def runtime_notes(patcher: Any) -> list[str]:
    """What runs unmerged on a patcher, and which kinds of weights do not."""
    notes = []
    for injection in patcher.get_injections(_KEY) or ():
        notes.append(f"{len(injection.additions)} modules run their LoRAs unmerged.")
        if injection.patched:
            kinds = Counter(injection.patched).most_common()
            text = ", ".join(f"{count} {kind}" for kind, count in kinds)
            notes.append(f"weights that cannot run them unmerged are patched: {text}.")
    return notes


def _add_injection(
    patcher: Any, additions: Mapping[str, list[_Addition]], patched: tuple[str, ...]
) -> None:
    merged = {name: tuple(more) for name, more in additions.items()}
    for injection in patcher.get_injections(_KEY) or ():
        patched = (*injection.patched, *patched)
        for name, before in injection.additions.items():
            merged[name] = (*before, *merged.get(name, ()))
    patcher.set_injections(_KEY, [RuntimeInjection(merged, patched)])
    patcher.remove_callbacks_with_key(CallbacksMP.ON_EJECT_MODEL, _KEY)
    patcher.add_callback_with_key(CallbacksMP.ON_EJECT_MODEL, _KEY, _eject)
    factors = [tensor for more in additions.values() for a in more for tensor in a.tensors()]
    if not factors:
        return
    # ComfyUI: loads these beside the model when it samples, and counts their memory. Text encoders
    # are loaded alone: their factors go to the device with each forward (0.30).
    patcher.set_additional_models(
        _KEY,
        [
            *patcher.get_additional_models_with_key(_KEY),
            _factors_patcher(factors, patcher.load_device, patcher.offload_device),
        ],
    )


class _Factors(nn.Module):
    """The factors as ComfyUI's memory management takes them."""

    def __init__(self, factors: list[Tensor], device: torch.device) -> None:
        super().__init__()
        self.factors = nn.ParameterList(factors)
        self.device = device


def _factors_patcher(factors: list[Tensor], load_device: Any, offload_device: Any) -> Any:
    module = _Factors(factors, offload_device)
    patcher = comfy.model_patcher.ModelPatcher(module, load_device, offload_device)
    # ComfyUI: how a copy for another GPU is made (0.30).
    patcher.cached_patcher_init = (_copied_factors, (factors, load_device, offload_device))
    return patcher


def _copied_factors(factors: list[Tensor], load_device: Any, offload_device: Any) -> Any:
    return _factors_patcher(copy.deepcopy(factors), load_device, offload_device)


def _can_run(model: nn.Module, name: str, parameter: str, key: PatchKey) -> bool:
    """Whether a patch of ``name.parameter`` is an addition to the output of module ``name``."""
    if not isinstance(key, str) and len(key) > 2:
        return False
    module = model.get_submodule(name)
    parent, _, last = name.rpartition(".")
    kind = type(model.get_submodule(parent))
    if _NEVER_CALLED.get((kind.__module__, kind.__name__)) == last:
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


def _addition(
    module: nn.Module, parameter: str, key: PatchKey, adapter: FusedLoraAdapter
) -> _Addition:
    shape = _shape(module)
    assert shape is not None
    channels = 1 - len(shape)
    outputs, inputs = (0, shape[0]), None
    if not isinstance(key, str):
        dim, start, length = key[1]
        shape = (*shape[:dim], length, *shape[dim + 1 :])
        outputs, inputs = ((start, length), None) if dim == 0 else (outputs, (start, length))
    if parameter == "bias":
        (view,) = adapter.update(_like(shape[:1]), 1.0).views
        bias = sum(dense.reshape(-1) for dense in view.dense)
        return _Addition(channels, outputs, bias=_factor(bias))
    (view,) = adapter.update(_like(shape), 1.0).views
    return _Addition(
        channels,
        outputs,
        inputs,
        down=None if view.down is None else _factor(view.down.reshape(-1, *shape[1:])),
        up=None if view.up is None else _factor(view.up),
        dense=tuple(_factor(dense.reshape(shape)) for dense in view.dense),
    )


def _like(shape: tuple[int, ...]) -> Tensor:
    """A tensor of a shape, without memory."""
    return torch.empty(()).expand(shape)


def _factor(tensor: Tensor) -> nn.Parameter:
    # A Parameter: moving the module that holds it moves this very object.
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def _wrapped(
    module: nn.Module, forward: Callable[..., Tensor], additions: tuple[_Addition, ...]
) -> Callable[..., Tensor]:
    """``forward`` with the additions; a plain closure, which torch.compile traces and guards."""
    is_conv = isinstance(module, _CONVOLUTIONS)

    def forward_with_loras(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # ComfyUI: fast fp8 clamps the input in place: read it before (0.30).
        updates = [
            _conv_update(module, addition, input, kwargs)
            if is_conv
            else _linear_update(addition, input)
            for addition in additions
        ]
        output = forward(input, *args, **kwargs)
        for addition, update in zip(additions, updates, strict=True):
            # One rounding, of a float32 sum.
            output.narrow(addition.channels, *addition.outputs).add_(update)
        return output

    return forward_with_loras


def _linear_update(addition: _Addition, x: Tensor) -> Tensor:
    """What a linear module's output gains, ``(*, out)``, float32."""
    if addition.bias is not None:
        return addition.bias.to(x.device)
    x = _read(addition, x)
    updates = [F.linear(x, dense.to(x.device)) for dense in addition.dense]
    if addition.down is not None and addition.up is not None:
        updates.append(F.linear(F.linear(x, addition.down.to(x.device)), addition.up.to(x.device)))
    return sum(updates[1:], updates[0])


def _conv_update(
    module: nn.Module, addition: _Addition, x: Tensor, kwargs: Mapping[str, Any]
) -> Tensor:
    """What a convolution's output gains, ``(*, out, *spatial)``, float32."""
    if addition.bias is not None:
        return addition.bias.to(x.device).reshape(-1, *(1,) * (-1 - addition.channels))
    x = _read(addition, x)
    # The module's own: its stride, padding, dilation and padding mode.
    convolve = module._conv_forward
    updates = [convolve(x, dense.to(x.device), None, **kwargs) for dense in addition.dense]
    if addition.down is not None and addition.up is not None:
        low = convolve(x, addition.down.to(x.device), None, **kwargs)
        low = low.movedim(addition.channels, -1)
        updates.append(F.linear(low, addition.up.to(x.device)).movedim(-1, addition.channels))
    return sum(updates[1:], updates[0])


def _read(addition: _Addition, x: Tensor) -> Tensor:
    x = x.float()
    return x if addition.inputs is None else x.narrow(addition.channels, *addition.inputs)


def _inject(additions: Mapping[str, tuple[_Addition, ...]], patcher: Any) -> None:
    """Wrap the forward of each module, first to last."""
    model = patcher.model
    # ComfyUI: a load that fails has detached the patcher, and injects on its way out (0.30).
    if sys.exc_info()[0] is not None and model.current_weight_patches_uuid is None:
        return
    # Another clone may still be in: ComfyUI loads two of them without ejecting the first.
    _restore(model)
    injected = _Injected(id(patcher), [])
    setattr(model, _INJECTED, injected)
    for name, more in additions.items():
        module = model.get_submodule(name)
        before = module.__dict__.get("forward")
        wrapper = _wrapped(module, module.forward, more)
        module.forward = wrapper
        injected.wrapped.append((module, wrapper, before))


def _leave_to_callback(patcher: Any) -> None:
    """Eject nothing yet.

    ComfyUI: injections are ejected first to last (0.30), and the bypass LoRA of core, injected
    after ours, then puts our wrapper back. The callback comes after all of them.
    """


def _eject(patcher: Any) -> None:
    """Undo what this patcher injected.

    ComfyUI: a clone of an injected patcher counts as injected and is ejected when it dies (0.30).
    """
    injected = getattr(patcher.model, _INJECTED, None)
    if injected is not None and injected.owner == id(patcher):
        _restore(patcher.model)


def _restore(model: nn.Module) -> None:
    """Take all wrappers of ours off a model, last to first."""
    injected = model.__dict__.pop(_INJECTED, None)
    if injected is None:
        return
    for module, wrapper, before in reversed(injected.wrapped):
        if module.__dict__.get("forward") is not wrapper:
            continue  # what was below ours has been ejected, and took ours with it
        if before is None:
            del module.forward
        else:
            module.forward = before
