"""What nodes ask of the program that runs them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from ..lora_core.binding import Binding
from ..lora_core.lora import Lora
from ..lora_core.models.target import Target
from ..lora_core.stack import StackItem
from ..training.trainable import Trainable
from .training_places import TrainingFolders


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


@dataclass(frozen=True)
class Merged(Applied):
    """A model and text encoder whose weights carry a merge, or carry none any more.

    Attributes:
        facts: What was done, name to text in order, for the receipt.
    """

    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A file that was written.

    Attributes:
        path: Where it lies.
        facts: What it holds, name to text in order, for the receipt.
    """

    path: Path
    facts: Mapping[str, str]


class Live(Protocol):
    """A panel that shows how a long-running node gets on; ``Host.live`` opens it.

    Calls come from the node's own thread. They are cheap: at most ten times a second all that
    changed is sent, and the last of it always is.
    """

    def progress(self, step: int, total: int, text: str = "") -> None:
        """Say that ``step`` of ``total`` are done; a line of text may stand beside it.

        Raises:
            BaseException: the host's own interrupt, once somebody stopped the run.
        """

    def point(self, series: str, x: float, y: float) -> None:
        """Add a point to a named curve; the chart thins a long one. NaN and infinity are left out.

        Raises:
            ValueError: a ninth series.
        """

    def picture(self, image: Tensor, caption: str = "") -> None:
        """Show a picture; the last eight stay.

        Args:
            image: (height, width, 3), float of 0 to 1, on any device.
            caption: What it shows, such as ``step 40``.
        """

    def stop_requested(self) -> Literal["keep"] | None:
        """``"keep"`` once somebody wishes that the node ends now and gives what it has."""


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
        mode: str = "auto",
    ) -> Applied:
        """Clones of ``model`` and ``clip`` that carry ``stack``; the originals are untouched.

        Args:
            model: The host's MODEL.
            clip: The host's CLIP, or None.
            stack: In order; strength 0 changes nothing.
            unmatched: ``"report"`` or ``"error"``: what tensors that match nothing are.
            mode: ``"merge"`` changes the weights, ``"runtime"`` adds the LoRAs in each forward
                pass, ``"auto"`` takes the one that suits the model.

        Raises:
            LoraError: a LoRA cannot be applied to this model.
        """

    def merge(
        self, model: Any, clip: Any, stack: Sequence[StackItem], mode: str, undo: str
    ) -> Merged:
        """Clones of ``model`` and ``clip`` with ``stack`` merged into their weights.

        Args:
            model: The host's MODEL.
            clip: The host's CLIP, or None.
            stack: In order; strength 0 changes nothing.
            mode: ``"on_device"``: un-merged exactly whenever another branch needs the base;
                ``"bake"``: an independent base without LoRAs as objects.
            undo: The rung of the ledger, ``"auto"``, ``"residual"``, ``"file"`` or ``"full"``.

        Raises:
            LoraError: a LoRA cannot be merged into this model, or the rung cannot be had.
        """

    def unmerge(self, model: Any, clip: Any) -> Merged:
        """Clones without what ``merge`` (``on_device``) put on them.

        Raises:
            LoraError: nothing of ours is merged here, or it was baked.
        """

    def save_model(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        filename: str,
        dtype: str,
        workflow: Mapping[str, object],
    ) -> Saved:
        """Write a checkpoint with all patches merged into its weights.

        Args:
            model: The host's MODEL.
            clip: The host's CLIP, or None.
            vae: The host's VAE, or None.
            filename: Name below the output folder; a number is added, nothing is overwritten.
            dtype: ``"as_loaded"``, ``"fp32"``, ``"fp16"`` or ``"bf16"``.
            workflow: The graph that made the model, name to JSON data, for the header.

        Raises:
            LoraError: the name leaves the folder, or the model cannot be written in this dtype.
        """

    def hooks(self, stack: Sequence[StackItem], schedule: Sequence[tuple[float, float]]) -> Any:
        """The host's HOOKS that apply ``stack`` by a schedule of the sampling.

        Args:
            stack: In order.
            schedule: ``(start, factor)``: from ``start`` (share of the sampling, 0 to 1) on, all
                strengths are multiplied by ``factor``; empty for factor 1 throughout.
        """

    def bindings(
        self,
        model: Any,
        clip: Any,
        stack: Sequence[StackItem],
    ) -> tuple[Binding, ...]:
        """Each LoRA of a stack seen from this model; nothing is changed or refused."""

    def live(self, node_id: str) -> AbstractContextManager[Live]:
        """A panel for as long as the context is open; how it ends is shown as well.

        Args:
            node_id: What the hidden input of ``nodes.base.LIVE_INPUT`` gives; that input is also
                what makes the canvas add a panel to nodes of a class.
        """

    def pictures_folder(self, name: str) -> Path:
        """The folder of training pictures of a name, below the host's input folder.

        Raises:
            LoraError: the name leaves the folder, or there is no such folder.
        """

    def pictures_fingerprint(self, names: Iterable[str]) -> str:
        """Changes when a file in one of these folders does; reads no content. Never raises."""

    def training_folders(self) -> TrainingFolders:
        """Where runs and their caches are kept."""

    stopped_runs: set[tuple[str, int, str]]
    """Name, seed and key of runs that were stopped before their end: queued again, they go on."""

    def require_lora_name(self, name: str) -> None:
        """Refuse a name that ``keep_lora`` would refuse.

        Raises:
            LoraError: the name is empty or leaves the folder.
        """

    def keep_lora(self, name: str, source: Path, step: int | None) -> Path:
        """Copy a trained file to where LoRAs are found, under a name that is free.

        Args:
            name: Without ending.
            source: The file.
            step: Of a run that did not come to its end; None of one that did.

        Returns:
            Its place; that of an equal file where there is one.

        Raises:
            LoraError: the name leaves the folder.
        """

    def trainable(self, model: Any, clip: Any, vae: Any) -> Trainable:
        """The host's models as the trainer sees them.

        Raises:
            LoraError: something is missing, LoRAs are on them, or they cannot be trained.
        """

    def weights(self, model: Any, clip: Any) -> Mapping[str, Mapping[str, Target]]:
        """``Trainable.weights`` of a model whose text encoders may be missing."""
