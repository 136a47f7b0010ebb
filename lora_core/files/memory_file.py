"""Tensors that never were a file, behind the interface of one."""

import ctypes
import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from .tensor_file import TensorInfo


class MemoryFile:
    """A state dict with metadata, read like a file.

    Args:
        name: Shown where a file would show its path.
        tensors: Name to tensor; held by reference and never written to.
        metadata: String to string, as in a safetensors header.
    """

    def __init__(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = Path(f"<memory>/{name}")
        self.metadata = dict(metadata or {})
        self._data = dict(tensors)
        self.tensors = {
            key: TensorInfo(t.dtype, tuple(t.shape), 0, t.numel() * t.element_size())
            for key, t in self._data.items()
        }

    def read(self, key: str) -> Tensor:
        """The tensor itself, not a copy."""
        return self._data[key]

    def read_many(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """The tensors themselves, by key."""
        return {key: self._data[key] for key in keys}

    def read_numbers(self, keys: Iterable[str]) -> dict[str, float]:
        """Tensors of one element, as numbers."""
        return {key: float(self._data[key]) for key in keys}

    def sha256(self) -> str:
        """Hash of names, dtypes, shapes and bytes, in the order of the names."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for key in sorted(self._data):
            tensor = self._data[key].detach().cpu().contiguous()
            digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            size = tensor.numel() * tensor.element_size()
            digest.update((ctypes.c_ubyte * size).from_address(tensor.data_ptr()) if size else b"")
        return digest.hexdigest()
