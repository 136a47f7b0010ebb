"""Deltas as matrices ``(out, columns)`` whose rows are made when they are asked for, float32."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


class Matrix(Protocol):
    """A matrix that may be smaller in memory than its elements."""

    @property
    def columns(self) -> int:
        """Number of columns."""

    @property
    def inner(self) -> tuple[int, ...]:
        """Lengths of the sums behind an element, one per product; () where none is summed."""

    def rows(self, rows: slice) -> Tensor:
        """Some rows, ``(n, columns)``; may be a view."""

    def scaled(self, factor: float) -> "Matrix":
        """``factor`` times the matrix."""

    def transposed(self) -> "Matrix":
        """Its transpose."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All that it is made of."""

    def mapped(self, change: Change) -> "Matrix":
        """The same of changed tensors."""


@dataclass(frozen=True)
class Full:
    """A matrix as it is."""

    values: Tensor
    inner = ()

    @property
    def columns(self) -> int:
        """See ``Matrix``."""
        return self.values.shape[1]

    def rows(self, rows: slice) -> Tensor:
        """A view."""
        return self.values[rows]

    def scaled(self, factor: float) -> "Full":
        """See ``Matrix``."""
        return Full(self.values * factor)

    def transposed(self) -> "Full":
        """A view."""
        return Full(self.values.t())

    def tensors(self) -> tuple[Tensor, ...]:
        """``(values,)``."""
        return (self.values,)

    def mapped(self, change: Change) -> "Full":
        """See ``Matrix``."""
        return Full(change(self.values))


@dataclass(frozen=True)
class Product:
    """``up @ down``: ``up`` is ``(out, rank)``, ``down`` is ``(rank, columns)``."""

    up: Tensor
    down: Tensor

    @property
    def columns(self) -> int:
        """See ``Matrix``."""
        return self.down.shape[1]

    @property
    def inner(self) -> tuple[int, ...]:
        """The rank."""
        return (self.down.shape[0],)

    def rows(self, rows: slice) -> Tensor:
        """New memory."""
        return torch.mm(self.up[rows], self.down)

    def scaled(self, factor: float) -> "Product":
        """The thinner factor is scaled."""
        if self.up.shape[0] < self.down.shape[1]:
            return replace(self, up=self.up * factor)
        return replace(self, down=self.down * factor)

    def transposed(self) -> "Product":
        """Views."""
        return Product(self.down.t(), self.up.t())

    def tensors(self) -> tuple[Tensor, ...]:
        """``(up, down)``."""
        return (self.up, self.down)

    def mapped(self, change: Change) -> "Product":
        """See ``Matrix``."""
        return Product(change(self.up), change(self.down))


@dataclass(frozen=True)
class Hadamard:
    """Two products, multiplied element by element."""

    first: Product
    second: Product

    @property
    def columns(self) -> int:
        """See ``Matrix``."""
        return self.first.columns

    @property
    def inner(self) -> tuple[int, ...]:
        """Both ranks."""
        return self.first.inner + self.second.inner

    def rows(self, rows: slice) -> Tensor:
        """New memory, twice while it is made."""
        return self.first.rows(rows).mul_(self.second.rows(rows))

    def scaled(self, factor: float) -> "Hadamard":
        """The first product is scaled."""
        return replace(self, first=self.first.scaled(factor))

    def transposed(self) -> "Hadamard":
        """Views."""
        return Hadamard(self.first.transposed(), self.second.transposed())

    def tensors(self) -> tuple[Tensor, ...]:
        """Those of both products."""
        return self.first.tensors() + self.second.tensors()

    def mapped(self, change: Change) -> "Hadamard":
        """See ``Matrix``."""
        return Hadamard(self.first.mapped(change), self.second.mapped(change))


@dataclass(frozen=True)
class Kronecker:
    """The block matrix of ``first[i, j] * second``."""

    first: Tensor
    second: Tensor
    inner = ()

    @property
    def columns(self) -> int:
        """See ``Matrix``."""
        return self.first.shape[1] * self.second.shape[1]

    def rows(self, rows: slice) -> Tensor:
        """New memory."""
        count = self.second.shape[0]
        start, stop, _ = rows.indices(self.first.shape[0] * count)
        index = torch.arange(start, stop, device=self.first.device)
        blocks = self.first[torch.div(index, count, rounding_mode="floor")]
        return (blocks[:, :, None] * self.second[index % count][:, None, :]).flatten(1)

    def scaled(self, factor: float) -> "Kronecker":
        """The smaller factor is scaled."""
        if self.first.numel() < self.second.numel():
            return replace(self, first=self.first * factor)
        return replace(self, second=self.second * factor)

    def transposed(self) -> "Kronecker":
        """Views."""
        return Kronecker(self.first.t(), self.second.t())

    def tensors(self) -> tuple[Tensor, ...]:
        """``(first, second)``."""
        return (self.first, self.second)

    def mapped(self, change: Change) -> "Kronecker":
        """See ``Matrix``."""
        return Kronecker(change(self.first), change(self.second))


@dataclass(frozen=True)
class Stretched:
    """A matrix times a number per row, ``(out, 1)``, or per column, ``(1, columns)``."""

    of: Matrix
    gain: Tensor

    @property
    def columns(self) -> int:
        """See ``Matrix``."""
        return self.of.columns

    @property
    def inner(self) -> tuple[int, ...]:
        """Those of what is multiplied."""
        return self.of.inner

    def rows(self, rows: slice) -> Tensor:
        """New memory."""
        return self.of.rows(rows) * (self.gain if self.gain.shape[0] == 1 else self.gain[rows])

    def scaled(self, factor: float) -> "Stretched":
        """See ``Matrix``."""
        return replace(self, gain=self.gain * factor)

    def transposed(self) -> "Stretched":
        """Views."""
        return Stretched(self.of.transposed(), self.gain.t())

    def tensors(self) -> tuple[Tensor, ...]:
        """What is multiplied, then the numbers."""
        return (*self.of.tensors(), self.gain)

    def mapped(self, change: Change) -> "Stretched":
        """See ``Matrix``."""
        return Stretched(self.of.mapped(change), change(self.gain))
