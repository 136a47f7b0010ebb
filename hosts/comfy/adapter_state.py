"""Adapters as tensors and plain data, which ComfyUI moves and compares, and back."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from ...lora_core.adapters import (
    Adapter,
    Additive,
    DiffAdapter,
    DoraAdapter,
    LohaAdapter,
    LokrAdapter,
    LoraAdapter,
    OftAdapter,
)

DEPENDENT = ("dora", "oft")
"""Kinds whose change depends on the base weight."""


def kind_and_number(adapter: Adapter) -> tuple[str, Any]:
    """What ``rebuilt`` needs beside the tensors; equal for adapters that differ in these alone.

    The number is the alpha of a LoRA, LoHa or OFT, the scale of a difference, of a LoKr its alpha,
    full rank and the names of its tensors, of a DoRA kind and number of its change, and its axis.
    """
    if isinstance(adapter, DoraAdapter):
        return "dora", (*kind_and_number(adapter.change), adapter.axis)
    if isinstance(adapter, LokrAdapter):
        return "lokr", (adapter.alpha, adapter.full_rank, tuple(adapter.factors))
    if isinstance(adapter, LohaAdapter):
        return "loha", adapter.alpha
    if isinstance(adapter, OftAdapter):
        return "oft", adapter.alpha
    if isinstance(adapter, LoraAdapter):
        return "lora", adapter.alpha
    return "diff", adapter.scale


def rebuilt(kind: str, tensors: Sequence[Tensor], number: Any) -> Adapter:
    """The adapter whose ``tensors()`` these are."""
    if kind == "dora":
        change_kind, change_number, axis = number
        change = cast(Additive, rebuilt(change_kind, tensors[:-1], change_number))
        return DoraAdapter(change, tensors[-1], axis)
    if kind == "lokr":
        alpha, full_rank, names = number
        factors = dict(zip(names, tensors, strict=True))
        return LokrAdapter(**factors, alpha=alpha, full_rank=full_rank)
    if kind == "loha":
        t1, t2 = tensors[4:] or (None, None)
        return LohaAdapter(*tensors[:4], alpha=number, t1=t1, t2=t2)
    if kind == "oft":
        return OftAdapter(tensors[0], tensors[1] if len(tensors) > 1 else None, number)
    if kind == "lora":
        return LoraAdapter(*tensors[:2], mid=tensors[2] if len(tensors) > 2 else None, alpha=number)
    return DiffAdapter(tensors[0], number)
