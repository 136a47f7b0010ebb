"""What a run will cost, before its first step."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .factors import Factors
from .kinds import file_bytes


@dataclass(frozen=True)
class Size:
    """What is trained and stored.

    Attributes:
        modules: That get factors.
        parameters: Numbers that are trained.
        share: Of the model's own numbers.
        file_bytes: Of the finished file, without its header.
        state_bytes: Of the factors, their gradients and two numbers of an optimiser for each.
    """

    modules: int
    parameters: int
    share: float
    file_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class Measured:
    """Of one step, run once without moving anything.

    Attributes:
        seconds: Forward and backward of all its batches.
        kept_bytes: Most activations that are kept for the backward pass at a time.
    """

    seconds: float
    kept_bytes: int


@dataclass(frozen=True)
class Cost:
    """Of a run, before its first step.

    Attributes:
        size: What is trained and stored.
        one: Of one step, where it was measured.
        steps: That are to be done.
    """

    size: Size
    one: Measured | None
    steps: int

    def to_text(self) -> str:
        """One line for each fact."""
        size, one = self.size, self.one
        lines = [
            f"{size.parameters:,} numbers in {size.modules} modules are trained, "
            f"{size.share:.2%} of the model",
            f"file: {_bytes(size.file_bytes)}",
            f"memory of factors and optimizer: {_bytes(size.state_bytes)}",
        ]
        if one is not None:
            lines += [
                f"memory of kept activations: {_bytes(one.kept_bytes)}",
                f"time: about {duration(one.seconds * self.steps)} for {self.steps} steps, "
                f"{one.seconds:.2f} s each, as the first one measured",
            ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The facts by name, bytes and seconds; None where no step was measured."""
        one = self.one
        return {
            "steps": self.steps,
            "modules": self.size.modules,
            "trained_parameters": self.size.parameters,
            "share_of_model": self.size.share,
            "file_bytes": self.size.file_bytes,
            "factors_and_optimizer_bytes": self.size.state_bytes,
            "activation_bytes": one and one.kept_bytes,
            "seconds_per_step": one and one.seconds,
            "seconds": one and one.seconds * self.steps,
        }


def size_of(factors: Sequence[Factors], parts: Mapping[str, nn.Module], dtype: str) -> Size:
    """What factors of a model cost.

    Args:
        factors: All of the run.
        parts: The model's parts; those that are trained count as the model.
        dtype: Of the finished file.
    """
    sizes = [{role: p.numel() for role, p in each.parameters.items()} for each in factors]
    own = {id(p) for each in factors for p in each.parameters.values()}
    whole = sum(
        parameter.numel()
        for name in {each.trained.component for each in factors}
        for parameter in parts[name].parameters()
        if id(parameter) not in own
    )
    return size_from(sizes, whole, dtype)


def size_from(sizes: Sequence[Mapping[str, int]], whole: int, dtype: str) -> Size:
    """What factors of these roles and numbers cost.

    Args:
        sizes: Of each module, ``role_sizes``.
        whole: The model's own numbers.
        dtype: Of the finished file.
    """
    count = sum(sum(one.values()) for one in sizes)
    stored = sum(file_bytes(one, dtype) for one in sizes)
    return Size(len(sizes), count, count / whole, stored, count * 4 * 4)


def measured(step: Callable[[], object], parameters: Iterable[Tensor]) -> Measured:
    """Run a step and look at it.

    Args:
        step: Computes gradients and moves nothing.
        parameters: What is always there, and no activation.
    """
    kept = Kept(parameters)
    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        step()
    return Measured(time.perf_counter() - started, kept.peak)


class Kept:
    """Bytes that are kept for the backward pass, each storage once.

    Args:
        parameters: What is always there, and no activation.

    Attributes:
        peak: Most bytes at a time.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._known = {_place(parameter) for parameter in parameters}
        self._counts: Counter[int] = Counter()
        self._bytes = self.peak = 0

    def pack(self, tensor: Tensor) -> "_Box":
        """See ``torch.autograd.graph.saved_tensors_hooks``."""
        place = _place(tensor)
        if place not in self._known:
            if not self._counts[place]:
                self._bytes += tensor.untyped_storage().nbytes()
                self.peak = max(self.peak, self._bytes)
            self._counts[place] += 1
        return _Box(tensor, self)

    def unpack(self, box: "_Box") -> Tensor:
        """See ``torch.autograd.graph.saved_tensors_hooks``."""
        return box.tensor

    def released(self, tensor: Tensor) -> None:
        """One who kept a tensor needs it no more."""
        place = _place(tensor)
        if place not in self._known:
            self._counts[place] -= 1
            if not self._counts[place]:
                self._bytes -= tensor.untyped_storage().nbytes()


class _Box:
    """A kept tensor; autograd drops it when its backward is done."""

    def __init__(self, tensor: Tensor, kept: Kept) -> None:
        self.tensor, self._kept = tensor, kept

    def __del__(self) -> None:
        self._kept.released(self.tensor)


def _place(tensor: Tensor) -> int:
    """Of a storage that lives; one on the meta device has no address."""
    return tensor.untyped_storage()._cdata


def duration(seconds: float) -> str:
    """In hours, minutes and seconds, to the unit that matters."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
