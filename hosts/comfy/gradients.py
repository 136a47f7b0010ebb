"""ComfyUI's modules made fit for gradients, for as long as a run lasts."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn


@contextmanager
def gradients(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Gradients flow through the parts; afterwards they are as they were, bit for bit.

    Args:
        parts: Loaded modules.
    """
    with ExitStack() as restore:
        restore.enter_context(_without_kernels())
        for part in parts:
            restore.enter_context(_ordinary_weights(part))
            restore.enter_context(_norms_read_copies(part))
            restore.enter_context(_blocks_read_copies(part))
        yield


@contextmanager
def _without_kernels() -> Iterator[None]:
    """ComfyUI: Flux and others then compute with what has gradients (0.30)."""
    management = comfy.model_management
    before = management.in_training
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = before


@contextmanager
def _ordinary_weights(part: nn.Module) -> Iterator[None]:
    """Weights loaded in inference mode are ordinary ones of the same bits, one after another.

    Autograd keeps no inference tensor for the backward pass, and ComfyUI writes into no others of
    quantised weights (ops.py, 0.30).
    """
    places = [
        (own, name)
        for module in part.modules()
        for own in (module._parameters, module._buffers)
        for name, tensor in own.items()
        if tensor is not None and tensor.is_inference()
    ]
    try:
        for own, name in places:
            own[name] = _copied(own[name])
        yield
    finally:
        with torch.inference_mode():
            for own, name in places:
                own[name] = _copied(own[name])


@torch.no_grad()
def _copied(tensor: Tensor) -> Tensor:
    copy = tensor.clone()  # quantised ones of inference mode cannot be detached
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy


@contextmanager
def _norms_read_copies(part: nn.Module) -> Iterator[None]:
    """Norms keep a copy of what they read for the backward pass.

    ComfyUI: the layers of CLIP and Flux then add to it in place (0.30); those of its UNet do not.
    """

    def copied(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].clone(), *inputs[1:]) if torch.is_grad_enabled() else inputs

    norms = [] if _is_unet(part) else [m for m in part.modules() if "Norm" in type(m).__name__]
    handles = [norm.register_forward_pre_hook(copied) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _blocks_read_copies(part: nn.Module) -> Iterator[None]:
    """Blocks can be computed again of what they were given.

    ComfyUI: those of Flux add in place to their inputs (0.30).
    """
    model = None if _is_unet(part) else getattr(part, "diffusion_model", None)
    inner = model.modules() if model is not None else ()
    lists = [module for module in inner if isinstance(module, nn.ModuleList)]
    with ExitStack() as restore:
        for block in (block for own in lists for block in own if "forward" not in vars(block)):
            block.forward = _of_copies(block.forward)
            restore.callback(delattr, block, "forward")
        yield


def _of_copies(forward: Callable[..., Any]) -> Callable[..., Any]:
    def of_copies(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return forward(*map(_own, args), **{name: _own(one) for name, one in kwargs.items()})

    return of_copies


def _own(argument: Any) -> Any:
    return argument.clone() if isinstance(argument, Tensor) else argument


def _is_unet(part: nn.Module) -> bool:
    return isinstance(getattr(part, "diffusion_model", None), UNetModel)
