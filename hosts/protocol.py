"""What nodes ask of the program that runs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..lora_core.binding import Binding
from ..lora_core.lora import Lora
from ..lora_core.stack import StackItem


@dataclass(frozen=True)
class LoraChoice:
    """What names a LoRA file: a name, and optionally the content it must have."""

    name: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Applied:
    """A model and text encoder with a stack on them.

    Attributes:
        model: The host's MODEL, or None when none was given.
        clip: The host's CLIP, or None when none was given.
        bindings: One per LoRA that was looked at, in the stack's order.
        path: How the weights are changed, for the report.
        notes: Facts for the report.
    """

    model: Any
    clip: Any
    bindings: tuple[Binding, ...]
    path: str
    notes: tuple[str, ...] = ()


class Host(Protocol):
    """A program that runs nodes: ComfyUI, or the embedded host."""

    def lora_names(self) -> list[str]:
        """Names of the LoRA files, as a user picks them."""

    def resolve(self, choice: LoraChoice) -> str:
        """The listed name of the file that a choice means.

        Raises:
            LoraError: no file, several files, or a name that leaves the LoRA folders.
        """

    def fingerprint(self, choice: LoraChoice) -> str:
        """Changes when the file behind a choice changes; reads no content. Never raises."""

    def load_lora(self, choice: LoraChoice) -> Lora:
        """The parsed file behind a choice.

        Raises:
            LoraError: it cannot be found or read.
        """

    def apply(
        self,
        model: Any,
        clip: Any,
        stack: Sequence[StackItem],
        unmatched: str,
    ) -> Applied:
        """Clones of ``model`` and ``clip`` that carry ``stack``; the originals are untouched.

        Raises:
            LoraError: a LoRA cannot be applied to this model.
        """

    def bindings(
        self,
        model: Any,
        clip: Any,
        stack: Sequence[StackItem],
    ) -> tuple[Binding, ...]:
        """Each LoRA of a stack seen from this model; nothing is changed or refused."""
