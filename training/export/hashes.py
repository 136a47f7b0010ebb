"""Hashes by which programs know a LoRA whatever its metadata."""

import hashlib
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000


def hash_entries(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """``sshs_model_hash`` and ``sshs_legacy_hash``; ``modelspec.hash_sha256`` beside a modelspec.

    The tensors are laid out as safetensors does and ``write_safetensors`` too; one copy of the
    file is in memory meanwhile.

    Args:
        tensors: Of the file, contiguous, on the CPU.
        metadata: Of the file; its ``ss_`` entries shift what the legacy hash sees.

    Source: kohya sd-scripts ``precalculate_safetensors_hashes``: the bytes after the header, and
    64 KiB from 1 MiB on of a file with the ``ss_`` entries alone. The third is the first.
    """
    trained = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    file = memoryview(save(dict(tensors), trained))
    start = 8 + int.from_bytes(file[:8], "little")
    model = hashlib.sha256(file[start:]).hexdigest()
    legacy = hashlib.sha256(file[_LEGACY_START : _LEGACY_START + _LEGACY_BYTES]).hexdigest()
    entries = {"sshs_model_hash": model, "sshs_legacy_hash": legacy[:8]}
    if any(name.startswith("modelspec.") for name in metadata):
        entries["modelspec.hash_sha256"] = f"0x{model}"
    return entries
