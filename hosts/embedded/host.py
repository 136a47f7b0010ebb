"""What nodes ask of the embedded host."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from ...lora_core.binding import Binding, bind
from ...lora_core.errors import LoraError
from ...lora_core.models.table import ModelTable
from ...lora_core.stack import StackItem
from ..hash_store import HashStore
from ..lora_files import LoraFiles, WithLoraFiles
from ..protocol import Applied, Merged, Saved
from .applying import applied, merged, table_of, unmerged
from .folders import Folders
from .handles import Base, Clip, Model, Vae
from .live import EmbeddedLive

_CHECKPOINTS_KEPT = 1

_Tables = WeakKeyDictionary[Base, WeakKeyDictionary[Base, ModelTable]]
"""By the bases of a MODEL and a CLIP, or twice the one base there is."""

Progress = Callable[[int, int], object]
"""Called with steps done and steps in all."""


class EmbeddedHost(WithLoraFiles):
    """diffusers and transformers models in this process.

    Args:
        folders: Where files lie.

    Attributes:
        report_progress: Told about each step of a node; raising from it ends the run.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.report_progress: Progress = lambda done, total: None
        hashes = HashStore(folders.user / "hashes.sqlite")
        loras = [folders.models / "loras"]
        super().__init__(LoraFiles(folders.loras, folders.lora, hashes, lambda: loras))
        self._live: EmbeddedLive | None = None
        self._loaded: OrderedDict[object, tuple[Model, Clip | None, Vae | None]] = OrderedDict()
        self._tables: _Tables = WeakKeyDictionary()

    def load_checkpoint(self, name: str) -> tuple[Model, Clip | None, Vae | None]:
        """Handles on a checkpoint's parts; the last one loaded is kept.

        Raises:
            LoraError: the file is missing, damaged, or of a model that this host does not run.
        """
        from .checkpoints import load_checkpoint

        path = self.folders.checkpoint(name)
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        if key not in self._loaded:
            while len(self._loaded) >= _CHECKPOINTS_KEPT:
                self._loaded.popitem(last=False)
            found = load_checkpoint(path)
            self._loaded[key] = (
                Model.of(found.diffusion),
                Clip.of(found.text) if found.text is not None else None,
                Vae(found.vae) if found.vae is not None else None,
            )
        return self._loaded[key]

    def apply(
        self,
        model: Any,
        clip: Any,
        stack: Sequence[StackItem],
        unmatched: str,
        mode: str = "auto",
    ) -> Applied:
        """See ``Host.apply``."""
        return applied(model, clip, self._table(model, clip), stack, unmatched, mode)

    def merge(
        self, model: Any, clip: Any, stack: Sequence[StackItem], mode: str, undo: Any
    ) -> Merged:
        """See ``Host.merge``."""
        return merged(model, clip, self._table(model, clip), stack, mode, undo)

    def unmerge(self, model: Any, clip: Any) -> Merged:
        """See ``Host.unmerge``."""
        return unmerged(model, clip)

    def save_model(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        filename: str,
        dtype: str,
        workflow: Mapping[str, object],
    ) -> Saved:
        """See ``Host.save_model``."""
        from .save_model import saved_model

        return saved_model(self.folders, model, clip, vae, filename, dtype, workflow)

    def hooks(self, stack: Sequence[StackItem], schedule: Sequence[tuple[float, float]]) -> Any:
        """See ``Host.hooks``; this host has none."""
        raise LoraError(
            "LoRA schedules need ComfyUI's hooks.",
            {"LoRAs": ", ".join(item.lora.name for item in stack)},
            "run this graph with --comfyui URL or PATH.",
        )

    def bindings(self, model: Any, clip: Any, stack: Sequence[StackItem]) -> tuple[Binding, ...]:
        """See ``Host.bindings``."""
        if model is None and clip is None:
            return ()
        table = self._table(model, clip)
        return tuple(bind(item.lora, table) for item in stack)

    @contextmanager
    def live(self, node_id: str) -> Iterator[EmbeddedLive]:
        """See ``Host.live``; here steps are reported, and nothing shows curves and pictures."""
        self._live = EmbeddedLive(self.report_progress)
        try:
            yield self._live
        finally:
            self._live = None

    def ask_to_keep(self) -> bool:
        """Wish that the node with a live panel ends and keeps what it has.

        False when there is none, or when it knows already.
        """
        if self._live is None or self._live.stop_requested():
            return False
        self._live.ask_to_keep()
        return True

    def _table(self, model: Model | None, clip: Clip | None) -> ModelTable:
        """The name table of a pair of bases, built once."""
        bases = [handle.base for handle in (model, clip) if handle is not None]
        known = self._tables.setdefault(bases[0], WeakKeyDictionary())
        if bases[-1] not in known:
            known[bases[-1]] = table_of(model, clip)
        return known[bases[-1]]
