"""The interface of every adapter kind."""

from typing import NamedTuple, Protocol

from torch import Tensor

from .matrices import Matrix


class ThinFactors(NamedTuple):
    """A delta in factored form: ``up @ down``, float32, scale not included.

    Shapes: ``up`` is ``(out, rank)``, ``down`` is ``(rank, in * kernel)``.
    """

    up: Tensor
    down: Tensor


class Adapter(Protocol):
    """The change of one base weight at strength 1."""

    @property
    def scale(self) -> float:
        """Dimensionless factor of the product (``alpha / rank``), 1 where a kind has none."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Every stored tensor, in the order of the constructor."""

    def to(self, device: object) -> "Adapter":
        """The same adapter with its tensors copied to ``device``, in their stored dtypes."""

    def delta(self, base_weight: Tensor) -> Tensor:
        """The full update, shape of ``base_weight``, float32, scale included."""


class Additive(Adapter, Protocol):
    """An adapter whose update does not depend on the base weight."""

    def to(self, device: object) -> "Additive":
        """See ``Adapter``."""

    def matrix(self, shape: tuple[int, ...]) -> Matrix:
        """The update of a weight of ``shape``, flattened from dimension 1, scale not included."""
