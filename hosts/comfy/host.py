"""What nodes ask of ComfyUI."""

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths

from ...lora_core.binding import Binding, bind
from ...lora_core.lora import Lora
from ...lora_core.stack import StackItem, make_plan
from ..hash_store import HashStore
from ..lora_files import LoraFiles
from ..protocol import Applied, LoraChoice
from .names import ComfyNames
from .patches import patched

_USER_FOLDER = "lora_workbench"


class ComfyHost:
    """ComfyUI's models, folders and patchers."""

    def __init__(self) -> None:
        database = Path(folder_paths.get_user_directory(), "default", _USER_FOLDER, "hashes.sqlite")
        self._files = LoraFiles(
            lambda: folder_paths.get_filename_list("loras"),
            lambda name: Path(folder_paths.get_full_path_or_raise("loras", name)),
            HashStore(database),
        )
        self._names: weakref.WeakKeyDictionary[Any, ComfyNames] = weakref.WeakKeyDictionary()

    def lora_names(self) -> list[str]:
        """See ``Host.lora_names``."""
        return folder_paths.get_filename_list("loras")

    def resolve(self, choice: LoraChoice) -> str:
        """See ``Host.resolve``."""
        return self._files.resolve(choice)

    def fingerprint(self, choice: LoraChoice) -> str:
        """See ``Host.fingerprint``."""
        return self._files.fingerprint(choice)

    def load_lora(self, choice: LoraChoice) -> Lora:
        """See ``Host.load_lora``."""
        return self._files.load(choice)

    def apply(
        self,
        model: Any,
        clip: Any,
        stack: Sequence[StackItem],
        unmatched: str,
    ) -> Applied:
        """See ``Host.apply``."""
        names = self._names_of(model, clip)
        plan = make_plan(stack, names, unmatched)
        new_model, new_clip = patched(model, clip, plan, stack, names)
        return Applied(new_model, new_clip, plan.bindings, _path(model, clip))

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

    def _names_of(self, model: Any, clip: Any) -> ComfyNames:
        """The name table of a model and text encoder, built once per loaded pair."""
        inner = model.model if model is not None else clip.cond_stage_model
        known = self._names.get(inner)
        if known is None or not known.is_of(clip):
            known = self._names[inner] = ComfyNames(model, clip)
        return known


def _path(model: Any, clip: Any) -> str:
    patcher = model if model is not None else clip.patcher
    return f"ComfyUI patches, one fused adapter per weight ({type(patcher).__name__})"
