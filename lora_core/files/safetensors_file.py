"""Our own reader of safetensors: every number of the header is checked before it is used."""

import struct
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from io import FileIO
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import DamagedFileError, LoraError, UnsupportedFormatError
from .header import DtypeError, HeaderError, parse_header
from .other_files import refuse_other_files
from .tensor_file import (
    FileStamp,
    TensorInfo,
    fill,
    hash_file,
    opened_unchanged,
    require_file,
    tensor_bytes,
)

MAX_HEADER = 8 << 20
"""Bytes of header read by default. The format allows 100 MB; 5,262 tensors need less than 1 MB."""

_DAMAGED_FIX = "the file is damaged or incomplete; download or copy it again."


_NUMBERS = {torch.float16: "<e", torch.float32: "<f", torch.float64: "<d", torch.int64: "<q"}


class SafetensorsFile:
    """A checked header, and the path from which tensors are read when they are asked for.

    Nothing is mapped into memory: a mapped file that is cut while in use kills the process.
    Data is taken as stored, little-endian.

    Attributes:
        path: The file on disk.
        metadata: ``__metadata__`` of the header.
        tensors: Every tensor by name, in the order of the header.
        data_start: First byte after the header; offsets of ``tensors`` count from byte 0.
    """

    def __init__(self, path: Path, max_header: int = MAX_HEADER) -> None:
        require_file(path)
        self.path = path
        with FileIO(path) as handle:
            self._stamp = FileStamp.of(handle)
            refuse_other_files(handle, path)
            raw = _read_header(handle, path, self._stamp.size, max_header)
        self.data_start = 8 + len(raw)
        try:
            metadata, tensors = parse_header(raw, self._stamp.size)
        except HeaderError as error:
            raise _of_file(error, path) from error
        self.metadata: Mapping[str, str] = MappingProxyType(metadata)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)

    def opened(self) -> AbstractContextManager[FileIO]:
        """Open the file, without a buffer, and check before and after that it did not change.

        Raises:
            LoraError: the file is gone or changed on disk.
        """
        return opened_unchanged(self.path, self._stamp)

    def read(self, key: str) -> Tensor:
        """Return one tensor, writable and in memory of its own.

        Raises:
            LoraError: the file changed on disk.
        """
        return self.read_many([key])[key]

    def read_many(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return several tensors in the order of ``keys``, opening the file once.

        Raises:
            LoraError: the file changed on disk.
        """
        infos = {key: self.tensors[key] for key in keys}
        with self.opened() as handle:
            return {key: self._read(handle, info) for key, info in infos.items()}

    def read_numbers(self, keys: Iterable[str]) -> dict[str, float]:
        """Return tensors of one element as numbers, opening the file once.

        Several times faster than ``read_many`` for the alphas of a file.

        Raises:
            LoraError: the file changed on disk.
        """
        infos = {key: self.tensors[key] for key in keys}
        with self.opened() as handle:
            return {key: self._read_number(handle, info) for key, info in infos.items()}

    def read_rows(self, key: str, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop`` of dimension 0, shape ``(stop - start, ...)``.

        Raises:
            IndexError: the rows are not all inside the tensor.
            LoraError: the file changed on disk.
        """
        info = self.tensors[key]
        if not (info.shape and 0 <= start <= stop <= info.shape[0]):
            raise IndexError(f"{key}: rows {start} to {stop} of shape {info.shape}")
        row = info.nbytes // max(info.shape[0], 1)
        shape = (stop - start, *info.shape[1:])
        part = TensorInfo(info.dtype, shape, info.start + start * row, info.start + stop * row)
        with self.opened() as handle:
            return self._read(handle, part)

    def copy_into(self, key: str, out: Tensor) -> None:
        """Read one tensor into ``out``, cast to its dtype and moved to its device if need be.

        Without another buffer when ``out`` is a contiguous CPU tensor of the stored dtype.

        Raises:
            ValueError: ``out`` has another shape.
            LoraError: the file changed on disk; ``out`` may then be partly written.
        """
        info = self.tensors[key]
        if tuple(out.shape) != info.shape:
            raise ValueError(f"{key}: stored {info.shape}, asked for {tuple(out.shape)}")
        if out.dtype != info.dtype or out.device.type != "cpu" or not out.is_contiguous():
            out.copy_(self.read(key))
            return
        with self.opened() as handle:
            handle.seek(info.start)
            fill(handle, tensor_bytes(out), self.path)

    def sha256(self) -> str:
        """Return the hash of the file's bytes, in hexadecimal; computed once.

        Raises:
            LoraError: the file changed on disk.
        """
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        return hash_file(self.path, self._stamp)

    def _read_number(self, handle: FileIO, info: TensorInfo) -> float:
        code = _NUMBERS.get(info.dtype)
        if code is None:
            return float(self._read(handle, info))
        raw = bytearray(info.nbytes)
        handle.seek(info.start)
        fill(handle, memoryview(raw), self.path)
        return float(struct.unpack(code, raw)[0])

    def _read(self, handle: FileIO, info: TensorInfo) -> Tensor:
        tensor = torch.empty(info.shape, dtype=info.dtype, device="cpu")
        handle.seek(info.start)
        fill(handle, tensor_bytes(tensor), self.path)
        return tensor


def open_safetensors(path: str | Path, max_header: int = MAX_HEADER) -> SafetensorsFile:
    """Open a safetensors file and check its header; no tensor is read.

    Args:
        path: The file.
        max_header: Largest header to read, bytes.

    Raises:
        DamagedFileError: the file breaks the format, or its header is above ``max_header``.
        UnsupportedFormatError: a tensor has a dtype that this torch cannot hold, or the file is a
            picture, a web page or a Git LFS pointer.
        LoraError: the file is missing or is a folder.

    Source: https://github.com/huggingface/safetensors#format. We differ from that library, which
    reads them: duplicate keys, headers above 8 MiB, entries that are lists, and shapes that torch
    cannot hold (beyond 64 dimensions, or int64 when a 0 among the sizes hides it) are errors.
    """
    return SafetensorsFile(Path(path), max_header)


def _read_header(handle: FileIO, path: Path, file_size: int, max_header: int) -> bytearray:
    """Return the JSON text, after its length has been held against the file and the cap."""
    prefix = handle.read(8)
    facts = {"file": path, "size of the file": f"{file_size} bytes"}
    if len(prefix) < 8:
        problem = "the file is empty" if not prefix else "the file ends inside its first 8 bytes"
        raise DamagedFileError(f"{path.name}: {problem}.", facts, _DAMAGED_FIX)
    length = int.from_bytes(prefix, "little")
    facts["header length it states"] = f"{length} bytes"
    if length > file_size - 8:
        problem = "the header would end after the file"
        raise DamagedFileError(f"{path.name}: {problem}.", facts, _DAMAGED_FIX)
    if length > max_header:
        raise DamagedFileError(
            f"{path.name}: the header is too long.",
            {**facts, "longest that is read": f"{max_header} bytes"},
            "get the file from another source; a LoRA or a model needs less than 1 MB of header.",
        )
    raw = bytearray(length)
    fill(handle, memoryview(raw), path)
    return raw


def _of_file(error: HeaderError, path: Path) -> LoraError:
    headline, facts = f"{path.name}: {error.problem}.", {"file": path, **error.facts}
    if isinstance(error, DtypeError):
        fix = "use a newer torch, or a copy of the file in F16, BF16 or F32."
        return UnsupportedFormatError(headline, facts, fix)
    return DamagedFileError(headline, facts, _DAMAGED_FIX)
