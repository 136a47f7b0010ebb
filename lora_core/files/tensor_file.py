"""What every kind of tensor file offers, and the checks that they share."""

import ctypes
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import LoraError, UnsupportedFormatError

_COPY_BUFFER = 1 << 20


class TensorInfo(NamedTuple):
    """Where a tensor lies in its file; a tuple, for a frozen dataclass is slower to make.

    Attributes:
        dtype: As stored.
        shape: As stored; ``()`` for a single number.
        start: First byte, counted from the beginning of the file.
        stop: First byte after the tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.stop - self.start

    @property
    def numel(self) -> int:
        """Count of elements."""
        return math.prod(self.shape)


class TensorFile(Protocol):
    """A file of named tensors, read one by one."""

    @property
    def path(self) -> Path:
        """The file on disk."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says about itself; empty where the format has no place for it."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, in file order."""
        ...

    def read(self, key: str) -> Tensor:
        """Return one tensor on the CPU, in memory of its own."""
        ...

    def read_many(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return several tensors, opening the file once."""
        ...

    def read_numbers(self, keys: Iterable[str]) -> dict[str, float]:
        """Return tensors of one element as numbers, opening the file once."""
        ...

    def sha256(self) -> str:
        """Return the hash of the file's bytes, in hexadecimal."""
        ...


def open_tensor_file(path: str | Path) -> TensorFile:
    """Open a file of tensors by its ending.

    Raises:
        UnsupportedFormatError: the ending is not one of a known format.
        LoraError: the file is missing, damaged, or holds more than tensors.
    """
    # Imported here: both modules need the names above.
    from .pickle_file import PICKLE_SUFFIXES, open_pickle
    from .safetensors_file import open_safetensors

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return open_safetensors(path)
    if suffix in PICKLE_SUFFIXES:
        return open_pickle(path)
    require_file(path)
    raise UnsupportedFormatError(
        f"{path.name}: files ending in {suffix or 'nothing'!r} are not read.",
        {"file": path, "read are": ", ".join([".safetensors", *PICKLE_SUFFIXES])},
        "choose a .safetensors file.",
    )


def require_file(path: Path) -> None:
    """Check that a file is there.

    Raises:
        LoraError: nothing or a folder has this name; the error names files with similar names.
    """
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.safetensors"))
        raise LoraError(
            f"{path.name}: this is a folder, not a file.",
            {"folder": path, "safetensors files in it": ", ".join(inside[:5]) or "none"},
            "give the path of the file itself.",
        )
    if not path.is_file():
        folder = path.parent
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        near = _similar(path, names)
        raise LoraError(
            f"{path.name}: the file does not exist.",
            {
                "looked for": path,
                "the folder": "exists" if folder.is_dir() else "does not exist",
                "similar names in it": ", ".join(near) or "none",
            },
            f"use {near[0]!r}." if near else "check the name and the folder.",
        )


def _similar(path: Path, names: Iterable[str]) -> list[str]:
    """Up to three names like a path's; a common ending alone makes none alike."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(Path(name).stem, []).append(name)
    near = get_close_matches(path.stem, stems, n=3)
    return [name for stem in near for name in stems[stem]][:3]


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What must not change while a file is in use: size in bytes, time of change in ns."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, handle: FileIO) -> "FileStamp":
        """The stamp of an open file."""
        stat = os.fstat(handle.fileno())
        return cls(stat.st_size, stat.st_mtime_ns)


@contextmanager
def opened_unchanged(path: Path, stamp: FileStamp) -> Iterator[FileIO]:
    """Open a file without a buffer and check, before and after, that it is as it was.

    Raises:
        LoraError: the file is gone, or its size or time of change is another.
    """
    require_file(path)
    with FileIO(path) as handle:
        _require_stamp(handle, path, stamp)
        yield handle
        _require_stamp(handle, path, stamp)


def fill(handle: FileIO, buffer: memoryview, path: Path) -> None:
    """Read from the current position until the buffer is full.

    Raises:
        LoraError: the file ends before; it was cut while in use.
    """
    done = 0
    while done < len(buffer):
        count = handle.readinto(buffer[done:])
        if not count:
            raise _changed(path, {"bytes missing at its end": len(buffer) - done})
        done += count


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as bytes; keep the tensor alive while using them.

    Raises:
        ValueError: the tensor is strided or on another device.
    """
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"need a contiguous CPU tensor, got {tensor.stride()}, {tensor.device}")
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")


def hash_file(path: Path, stamp: FileStamp) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; 1 MiB is in memory at a time.

    Raises:
        LoraError: the file changed since ``stamp``.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_COPY_BUFFER))
    with opened_unchanged(path, stamp) as handle:
        while count := handle.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _require_stamp(handle: FileIO, path: Path, stamp: FileStamp) -> None:
    now = FileStamp.of(handle)
    if now != stamp:
        raise _changed(path, {"size then and now": f"{stamp.size} and {now.size} bytes"})


def _changed(path: Path, facts: Mapping[str, object]) -> LoraError:
    return LoraError(
        f"{path.name}: the file changed on disk while in use.",
        {"file": path, **facts},
        "wait until it is written completely, then load it again.",
    )
