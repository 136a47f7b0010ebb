"""LoRAs applied unmerged: each forward adds ``up @ (down @ x)``, and no weight is touched."""

import copy
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import comfy.model_patcher
import torch
from comfy.patcher_extension import CallbacksMP, PatcherInjection
from torch import Tensor, nn

from .adapter import FusedLoraAdapter
from .additions import Addition, addition_of, can_run, row_update, update_of
from .names import PatchKey

_KEY = "lora_workbench_runtime"
_INJECTED = "_lora_workbench_injected"


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
        self, additions: Mapping[str, tuple[Addition, ...]], patched: tuple[str, ...]
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
    additions: dict[str, list[Addition]] = {}
    rest: dict[PatchKey, FusedLoraAdapter] = {}
    for key, adapter in patches.items():
        name, _, parameter = (key if isinstance(key, str) else key[0]).rpartition(".")
        if can_run(patcher, name, parameter, key, adapter):
            addition = addition_of(patcher, name, parameter, key, adapter)
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
    patcher: Any, additions: Mapping[str, list[Addition]], patched: tuple[str, ...]
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


def _wrapped(
    module: nn.Module, forward: Callable[..., Tensor], additions: tuple[Addition, ...]
) -> Callable[..., Tensor]:
    """``forward`` with the additions; a plain closure, which torch.compile traces and guards."""
    of_input = [each for each in additions if each.reads_input]
    of_output = [each for each in additions if each.reads_output]

    def forward_with_loras(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # ComfyUI: fast fp8 clamps the input in place: read it before (0.30).
        updates = [update_of(module, forward, a, input, args, kwargs) for a in of_input]
        output = forward(input, *args, **kwargs)
        gains = [row_update(module, each, output) for each in of_output]
        for place, update in (*updates, *gains):
            # One rounding, of a float32 sum.
            output.narrow(*place).add_(update)
        return output

    return forward_with_loras


def _inject(additions: Mapping[str, tuple[Addition, ...]], patcher: Any) -> None:
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
