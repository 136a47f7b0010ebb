"""The demo's files, put into folders as ComfyUI lays them out."""

import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ...lora_core.errors import LoraError
from ...lora_core.files.safetensors_file import open_safetensors
from ...lora_core.files.write import write_safetensors
from .structure import CHECKPOINT_METADATA, TOKEN_IDS, TOKEN_ROWS, TOKEN_TABLE, token_table

CHECKPOINT = "demo.safetensors"
LORAS = ("neon.safetensors", "mosaic.safetensors")
EXAMPLE_NAMES: Mapping[str, str] = MappingProxyType(
    {"sd15": "demo", "style": "neon", "detail": "mosaic"}
)
"""What the example graphs name, to what the demo has."""

_HERE = Path(__file__).parent


def write_demo_checkpoint(folder: Path) -> Path:
    """Write the demo's model as an ordinary single-file checkpoint, and its LoRAs.

    Equal bytes every time; each file appears whole or not at all.

    Args:
        folder: Gets ``checkpoints/demo.safetensors``, ``loras/neon.safetensors`` and
            ``loras/mosaic.safetensors``; made when missing, files of these names are replaced.

    Returns:
        The checkpoint: SD1.5's tensor names, fp16, about 10 MB, almost all of it the token table.

    Raises:
        LoraError: the package's own weights are damaged.
        OSError: the folder cannot be written.
    """
    checkpoints, loras = folder / "checkpoints", folder / "loras"
    for place in (checkpoints, loras):
        place.mkdir(parents=True, exist_ok=True)
    path = checkpoints / CHECKPOINT
    write_whole(_HERE / "weights.safetensors", path)
    for name in LORAS:
        _copy(_HERE / name, loras / name)
    return path


def write_example_models(folder: Path) -> tuple[Path, ...]:
    """Write the demo's model and LoRAs under the names of the example graphs, all or none.

    Args:
        folder: Gets ``checkpoints/sd15.safetensors``, ``loras/style.safetensors`` and
            ``loras/detail.safetensors``; made when missing.

    Returns:
        Their paths.

    Raises:
        LoraError: one of them exists.
        OSError: the folder cannot be written.
    """
    kinds = {name: "checkpoints" if name == "sd15" else "loras" for name in EXAMPLE_NAMES}
    paths = {name: folder / kind / f"{name}.safetensors" for name, kind in kinds.items()}
    taken = [path for path in paths.values() if path.exists()]
    if taken:
        raise LoraError(
            "Files of the names that the examples use exist.",
            {"Files": ", ".join(map(str, taken))},
            "name another folder, or move them away.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lora-workbench-", dir=folder) as scratch:
        write_demo_checkpoint(Path(scratch))
        for name, path in paths.items():
            path.parent.mkdir(exist_ok=True)
            source = Path(scratch) / kinds[name] / f"{EXAMPLE_NAMES[name]}.safetensors"
            source.replace(path)
    return tuple(paths.values())


def write_whole(weights: Path, path: Path) -> None:
    """Write a checkpoint of weights whose token table holds the trained rows alone."""
    file = open_safetensors(weights)
    tensors = file.read_many(file.tensors)
    table = token_table()
    table[tensors.pop(TOKEN_IDS)] = tensors.pop(TOKEN_ROWS)
    write_safetensors(path, {**tensors, TOKEN_TABLE: table}, CHECKPOINT_METADATA, overwrite=True)


def _copy(source: Path, target: Path) -> None:
    """Copy a file under another name, then rename it."""
    temporary = target.with_name(f".lora-workbench-{uuid.uuid4().hex}")  # of the user's umask
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
