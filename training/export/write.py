"""A trained LoRA as a file, which takes its name only after it was read again and compared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from ...lora_core.binding import NameTable
from ...lora_core.errors import LoraError
from ...lora_core.files.memory_file import MemoryFile
from ...lora_core.files.write import require_target, write_safetensors
from .hashes import hash_entries
from .names import ExportTable, OneComponent
from .tensors import Form, adapter_header, exported_tensors, lora_config, named_modules
from .trained import Trained
from .verify import verified

_SCRATCH_PREFIX = ".lora-workbench-"
_PEFT_FILE, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Exported:
    """A written and verified file.

    Attributes:
        path: The file, or the folder of the form ``"peft"``.
        sha256: Of the file's bytes; in a folder, of the tensors' file.
        tensors_sha256: Of names, dtypes, shapes and bytes of the tensors, whatever the metadata.
        worst_error: Largest relative Frobenius error of a module's delta.
        warnings: What programs make of the file that a user may not expect.
    """

    path: Path
    sha256: str
    tensors_sha256: str
    worst_error: float
    warnings: tuple[str, ...] = ()


def export(
    modules: Sequence[Trained],
    table: ExportTable,
    path: str | Path,
    form: Form = "kohya",
    dtype: str = "fp16",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a trained LoRA, read it again with our reader and compare every module's delta.

    Equal modules and metadata give equal bytes.

    Args:
        modules: What was trained; the factors may be on any device.
        table: The model that was trained; the file is bound to it again.
        path: The file to make, ``.safetensors``. For ``"peft"`` the folder to make, with
            ``adapter_model.safetensors`` and ``adapter_config.json`` in it.
        form: ``"kohya"`` is read by every program; ``"diffusers"`` by ``load_lora_weights``;
            ``"peft"`` by ``PeftModel``, and holds one component.
        dtype: Of the factors: ``"fp16"``, ``"bf16"`` or ``"fp32"``. ``BOUNDS`` has the error that
            is allowed for each.
        metadata: Text by name for the header; hashes of the tensors are added.
        overwrite: Whether what has this name is replaced.

    Raises:
        UnknownChoiceError: no form or dtype of this name.
        LoraError: the form cannot hold the modules, the place cannot be written to, or what was
            written is not what was trained. No file is left then.
    """
    path = Path(path)
    named = named_modules(modules, table, form)
    readers = _readers(modules, table, form)
    _require_place(path, form, overwrite)
    tensors = exported_tensors(named, form, dtype)
    with TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=path.parent) as scratch:
        draft = Path(scratch) / path.name
        _write(draft, form, tensors, named, metadata or {})
        lora, worst = verified(draft, named, readers, dtype)
        sha256 = lora.sha256
        _require_place(path, form, overwrite)
        _take_name(draft, path)
    digest = MemoryFile(path.name, tensors).sha256()
    return Exported(path, sha256, digest, worst, tuple(_warnings(modules, form)))


def _readers(modules: Sequence[Trained], table: ExportTable, form: Form) -> NameTable:
    """The names that a reader of the file goes by."""
    if form != "peft":
        return table
    first, *others = dict.fromkeys(module.target.component for module in modules)
    if others:
        raise LoraError(
            "A PEFT folder holds the LoRA of one component.",
            {"Components": ", ".join([first, *others])},
            "export each component by itself, or take the form 'diffusers'.",
        )
    return OneComponent(table, first)


def _require_place(path: Path, form: Form, overwrite: bool) -> None:
    if form == "peft":
        folder_is_there = path.is_dir()
        require_target(path / _PEFT_FILE if folder_is_there else path, overwrite)
        if folder_is_there:
            require_target(path / _PEFT_CONFIG, overwrite)
        elif path.exists():
            raise LoraError(
                f"{path.name}: a PEFT LoRA is a folder, and a file has this name.",
                {"path": path},
                "choose another name.",
            )
        return
    if path.suffix != ".safetensors":
        raise LoraError(
            f"{path.name}: a LoRA is written as .safetensors.",
            {"path": path},
            f"use {path.stem + '.safetensors'!r}.",
        )
    require_target(path, overwrite)


def _write(
    draft: Path,
    form: Form,
    tensors: Mapping[str, Tensor],
    named: Mapping[str, Trained],
    metadata: Mapping[str, str],
) -> None:
    header = {**metadata, **hash_entries(tensors, metadata)}
    if form == "kohya":
        write_safetensors(draft, tensors, header)
        return
    header["format"] = "pt"
    if form == "diffusers":
        write_safetensors(draft, tensors, header | adapter_header(named))
        return
    draft.mkdir()
    write_safetensors(draft / _PEFT_FILE, tensors, header)
    paths = {name.removeprefix(_PEFT_PREFIX): module for name, module in named.items()}
    config = {"peft_type": "LORA", "inference_mode": True, **lora_config(paths)}
    text = json.dumps(config, indent=2, sort_keys=True)
    (draft / _PEFT_CONFIG).write_text(text + "\n", encoding="utf-8")


def _take_name(draft: Path, path: Path) -> None:
    if not (draft.is_dir() and path.is_dir()):
        draft.replace(path)
        return
    for file in draft.iterdir():
        file.replace(path / file.name)


def _warnings(modules: Sequence[Trained], form: Form) -> Iterator[str]:
    if form != "kohya":
        yield (
            "ComfyUI's own loader does not read this form: it knows no UNet name of it and takes "
            "alpha = rank; use our nodes, or kohya's form"
        )
    yield from dict.fromkeys(text for module in modules for text in module.warnings(form))
