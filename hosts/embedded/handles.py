"""MODEL, CLIP and VAE of the embedded host: a loaded base, and what a branch of a graph puts on it.

Handles are cheap and immutable; a base's weights are changed only when somebody asks a handle for
its module, and then only where they differ from what the last handle left there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor, nn

from ...lora_core.binding import Binding
from ...lora_core.files.safetensors_file import open_safetensors
from ...lora_core.patching.base_file import CheckpointRows
from ...lora_core.patching.ledger import MergeLedger
from ...lora_core.patching.rungs import UndoChoice
from ...lora_core.stack import Plan, StackItem, plan_of_bound
from .parts import DiffusionPart, StoredRows, TextPart, VaePart

UNET_PREFIX = "unet."
_ENCODER_PREFIXES = ("text_encoder.", "text_encoder_2.")


class Change(NamedTuple):
    """One LoRA on a handle.

    Attributes:
        item: The LoRA with its strengths and weighting.
        binding: What it addresses.
        is_merge: Whether Merge Into Model put it there, so that Unmerge From Model takes it off.
    """

    item: StackItem
    binding: Binding
    is_merge: bool


class Base:
    """The live weights of one component, under the names diffusers pipelines give them.

    Args:
        weights: Name to parameter.
        files: Name to the place its base can be read again.
    """

    def __init__(self, weights: Mapping[str, Tensor], files: Mapping[str, StoredRows]) -> None:
        self.weights = weights
        paths = dict.fromkeys(place.path for place in files.values())
        opened = {path: open_safetensors(path) for path in paths}
        self._base_files = {
            name: CheckpointRows(opened[place.path], place.key, place.first_row)
            for name, place in files.items()
        }
        self._ledgers: dict[UndoChoice, MergeLedger] = {}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape."""
        return {name: tuple(weight.shape) for name, weight in self.weights.items()}

    def carry(self, plan: Plan, undo: UndoChoice) -> MergeLedger:
        """Make the weights carry exactly ``plan``; the cost is that of the difference.

        Raises:
            LoraError: see ``MergeLedger.apply``.
        """
        for choice, ledger in self._ledgers.items():
            if choice != undo and ledger.applied:
                ledger.unmerge()
        ledger = self._ledgers.get(undo)
        if ledger is None:
            ledger = self._ledgers[undo] = MergeLedger(self.weights, undo, self._base_files)
        ours = {name: terms for name, terms in plan.terms.items() if name in self.weights}
        ledger.apply(Plan(ours))
        return ledger


class _Handle:
    """What a base carries for one branch of a graph.

    Attributes:
        base: The weights, shared by all handles on them.
        changes: In order.
        undo: How their base is kept.
        baked: The items that are part of the base itself.
    """

    base: Base
    changes: tuple[Change, ...]
    undo: UndoChoice
    baked: tuple[StackItem, ...]

    @property
    def lineage(self) -> tuple[StackItem, ...]:
        """All that lies on the weights, baked items first."""
        return (*self.baked, *(change.item for change in self.changes))

    @cached_property
    def plan(self) -> Plan:
        """What the changes do, all of them in one pass."""
        return plan_of_bound([(change.item, change.binding) for change in self.changes])

    def carry(self) -> MergeLedger:
        """Make the base carry this handle's changes; returns the ledger that did."""
        return self.base.carry(self.plan, self.undo)


@dataclass(frozen=True, eq=False)
class Model(_Handle):
    """MODEL."""

    part: DiffusionPart
    base: Base
    changes: tuple[Change, ...] = ()
    undo: UndoChoice = "auto"
    baked: tuple[StackItem, ...] = ()

    @classmethod
    def of(cls, part: DiffusionPart) -> "Model":
        """A handle without changes, on a base of its own."""
        names = {name: UNET_PREFIX + name for name, _ in part.unet.named_parameters()}
        return cls(part, _base(dict(part.unet.named_parameters()), part.files, names))

    def loaded(self) -> DiffusionPart:
        """The UNet with this handle's LoRAs in its weights, until another handle is loaded."""
        self.carry()
        return self.part


@dataclass(frozen=True, eq=False)
class Clip(_Handle):
    """CLIP.

    Attributes:
        skip: CLIPSetLastLayer's number, -1 for the last layer, or None for the family's own.
    """

    part: TextPart
    base: Base
    changes: tuple[Change, ...] = ()
    undo: UndoChoice = "auto"
    baked: tuple[StackItem, ...] = ()
    skip: int | None = None

    @classmethod
    def of(cls, part: TextPart) -> "Clip":
        """A handle without changes, on a base of its own."""
        parameters = {
            f"{encoder}.{name}": parameter
            for encoder, module in part.encoders.items()
            for name, parameter in module.named_parameters()
        }
        prefixes = dict(zip(part.encoders, _ENCODER_PREFIXES, strict=False))
        names = {
            name: prefixes[encoder] + rest
            for name in parameters
            for encoder, _, rest in [name.partition(".")]
        }
        return cls(part, _base(parameters, part.files, names))

    def loaded(self) -> TextPart:
        """The encoders with this handle's LoRAs in their weights, until another is loaded."""
        self.carry()
        return self.part


@dataclass(frozen=True, eq=False)
class Vae:
    """VAE."""

    part: VaePart


def _base(
    parameters: Mapping[str, nn.Parameter],
    files: Mapping[str, StoredRows],
    names: Mapping[str, str],
) -> Base:
    """A base whose parameters and files go by ``names``."""
    return Base(
        {names[name]: parameter.data for name, parameter in parameters.items()},
        {names[name]: place for name, place in files.items()},
    )
