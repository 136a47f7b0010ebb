"""Files on this machine that a graph reads as inputs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..lora_core.errors import LoraError
from .set_inputs import Setting, input_specs

_FOLDERS = ("folder", "mask_folder", "regularisation")
# What ComfyUI's inputs with an upload button carry in their options.
_UPLOADS = ("image_upload", "audio_upload", "video_upload", "file_upload")


def local_inputs(
    prompt: Mapping[str, Any],
    object_info: Mapping[str, Any],
    folders: Sequence[Path],
    chosen: Collection[Setting],
) -> Iterator[tuple[Setting, Path]]:
    """Yield the inputs that name a file of this machine, with its path.

    A graph may come from anyone: what it names by itself is only looked for inside ``folders``.
    A name that the user has set may lie anywhere.

    Args:
        prompt: In API form, settings included.
        object_info: As GET /object_info.
        folders: Searched in order.
        chosen: The settings of the command line.
    """
    for node, entry in prompt.items():
        for name, spec in input_specs(entry["class_type"], object_info).items():
            value = entry["inputs"].get(name)
            if not isinstance(value, str) or not _is_upload(spec):
                continue
            setting = Setting(node, name, value)
            path = _anywhere(value) if setting in chosen else _inside(value, folders)
            if path is not None and path.is_file():
                yield setting, path


def local_folders(
    prompt: Mapping[str, Any], folders: Sequence[Path], chosen: Collection[Setting]
) -> Iterator[tuple[Setting, Path]]:
    """Yield the inputs that name a folder of training pictures, as ``local_inputs`` does.

    Raises:
        LoraError: there is no such folder.
    """
    for node, entry in prompt.items():
        names = _FOLDERS if entry["class_type"] == "LoraWorkbenchDataset" else ()
        for name in names:
            value = entry["inputs"].get(name)
            if not isinstance(value, str) or not value:
                continue
            setting = Setting(node, name, value)
            path = _anywhere(value) if setting in chosen else _inside(value, folders)
            if path is None or not path.is_dir():
                raise LoraError(
                    f"There is no folder {value!r} of pictures.",
                    {
                        "Node": node,
                        "Looked in": ", ".join(str(place.resolve()) for place in folders),
                    },
                    f"put it into one of these, or name another: --set {node}.{name}=PATH.",
                )
            yield setting, path


def _is_upload(spec: Sequence[Any]) -> bool:
    options = spec[1] if len(spec) > 1 else {}
    # ComfyUI: an input that reads the output folder also has an upload button (0.30.0).
    return any(options.get(name) for name in _UPLOADS) and (
        options.get("image_folder", "input") == "input"
    )


def _anywhere(value: str) -> Path | None:
    path = Path(value).expanduser()
    return path if path.exists() else None


def _inside(value: str, folders: Sequence[Path]) -> Path | None:
    for folder in folders:
        root = folder.resolve()
        path = (root / value).resolve()
        if path.is_relative_to(root) and path.exists():
            return path
    return None
