"""What nodes ask of ComfyUI."""

import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import folder_paths

from ...lora_core.binding import Binding, bind
from ...lora_core.stack import StackItem, make_plan
from ..hash_store import HashStore
from ..live_panel import Panels
from ..lora_files import LoraFiles, WithLoraFiles
from ..protocol import Applied, Merged, Saved
from .hooks import hook_group
from .live import ComfyLive, live
from .merge import merged
from .modes import choose_ways
from .names import ComfyNames
from .patches import patched
from .save_model import saved_model
from .unmerge import unmerged

_USER_FOLDER = "lora_workbench"


class ComfyHost(WithLoraFiles):
    """ComfyUI's models, folders and patchers.

    Attributes:
        panels: The live panels of the last nodes that had one.
    """

    def __init__(self) -> None:
        database = Path(folder_paths.get_user_directory(), "default", _USER_FOLDER, "hashes.sqlite")
        super().__init__(
            LoraFiles(
                lambda: folder_paths.get_filename_list("loras"),
                lambda name: Path(folder_paths.get_full_path_or_raise("loras", name)),
                HashStore(database),
                lambda: [Path(folder) for folder in folder_paths.get_folder_paths("loras")],
            )
        )
        self.panels = Panels()
        self._names: weakref.WeakKeyDictionary[Any, ComfyNames] = weakref.WeakKeyDictionary()

    def apply(
        self,
        model: Any,
        clip: Any,
        stack: Sequence[StackItem],
        unmatched: str,
        mode: str = "auto",
    ) -> Applied:
        """See ``Host.apply``."""
        ways = choose_ways(model, clip, mode)
        names = self._names_of(model, clip)
        plan = make_plan(stack, names, unmatched)
        new_model, new_clip = patched(model, clip, plan, stack, names, ways.modes)
        notes = ways.notes(new_model, new_clip)
        return Applied(new_model, new_clip, plan.bindings, ways.path, notes)

    def merge(
        self, model: Any, clip: Any, stack: Sequence[StackItem], mode: str, undo: str
    ) -> Merged:
        """See ``Host.merge``."""
        return merged(model, clip, stack, self._names_of(model, clip), mode, undo)

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
        return saved_model(model, clip, vae, filename, dtype, workflow)

    def hooks(self, stack: Sequence[StackItem], schedule: Sequence[tuple[float, float]]) -> Any:
        """See ``Host.hooks``."""
        return hook_group(stack, schedule)

    def bindings(
        self,
        model: Any,
        clip: Any,
        stack: Sequence[StackItem],
    ) -> tuple[Binding, ...]:
        """See ``Host.bindings``."""
        if model is None and clip is None:
            return ()
        names = self._names_of(model, clip)
        return tuple(bind(item.lora, names) for item in stack)

    def live(self, node_id: str) -> AbstractContextManager[ComfyLive]:
        """See ``Host.live``."""
        return live(self.panels, node_id)

    def _names_of(self, model: Any, clip: Any) -> ComfyNames:
        """The name table of a model and text encoder, built once per loaded pair."""
        inner = model.model if model is not None else clip.cond_stage_model
        known = self._names.get(inner)
        if known is None or not known.is_of(clip):
            known = self._names[inner] = ComfyNames(model, clip)
        return known
