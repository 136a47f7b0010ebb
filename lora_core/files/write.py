"""Writing safetensors: header first, then the data piece by piece, and all of it or nothing."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..errors import LoraError
from .header import DTYPES, METADATA_KEY
from .safetensors_file import MAX_HEADER, SafetensorsFile
from .tensor_file import fill, tensor_bytes

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8
_COPY_BUFFER = 1 << 20
_TEMPORARY_PREFIX = ".lora-workbench-"


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write tensors to a safetensors file, larger element types first, then by name.

    That order keeps every tensor aligned to its element size and makes equal input give equal
    bytes. One tensor at a time is brought to the CPU. Layout and errors are those of
    ``SafetensorsWriter``.

    Args:
        path: The file to make.
        tensors: Name to tensor, of any device and strides.
        metadata: Text by name, for the header.
        overwrite: Whether an existing file is replaced.

    Raises:
        LoraError: the file exists, its folder does not, or the header cannot be written.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    layout = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in names}
    with SafetensorsWriter(path, layout, metadata, overwrite) as writer:
        for name in names:
            data = tensors[name].detach().cpu().resolve_conj().resolve_neg()
            writer.write(name, data.contiguous())


class SafetensorsWriter:
    """Writes a safetensors file whose shapes are known before its data.

    A context manager. The file is made under a temporary name in the same folder and takes its
    own name when the block ends; after any exception (an interrupt too) the temporary file is gone
    and the target is as it was. Memory is bounded by the pieces that the caller passes and 1 MiB.
    Use from one thread.

    Args:
        path: The file to make; ``~`` is not expanded.
        layout: Name to (dtype, shape), in the order of the data.
        metadata: Text by name; written in the order of the names.
        overwrite: Whether an existing file is replaced.

    Raises:
        LoraError: the file exists and ``overwrite`` is off, its folder does not exist, or the
            header cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        layout: Layout,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self._header, self._spans = _encode_header(self.path, layout, metadata or {})
        self._dtypes = {name: dtype for name, (dtype, _) in layout.items()}
        self._missing = {name: stop - start for name, (start, stop) in self._spans.items()}
        self._fd = -1
        self._temporary = self.path.with_name(f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp")

    def __enter__(self) -> "SafetensorsWriter":
        """Create the temporary file at its full size and write the header."""
        require_target(self.path, self.overwrite)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            self._fd = os.open(self._temporary, flags, 0o666)
            os.ftruncate(self._fd, max((stop for _, stop in self._spans.values()), default=0))
            self._put(memoryview(self._header), 0)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the file its name, or remove it after an exception."""
        try:
            if kind is None:
                self._commit()
        finally:
            self._discard()

    def write(self, name: str, data: Tensor, offset_bytes: int = 0) -> None:
        """Write ``data`` into a tensor, from byte ``offset_bytes`` of it.

        Each byte of the file is to be written once.

        Raises:
            ValueError: ``data`` is strided, on another device, of another dtype, or too long.
        """
        if data.dtype != self._dtypes[name]:
            raise ValueError(f"{name}: declared {self._dtypes[name]}, got {data.dtype}")
        piece = tensor_bytes(data)
        position = self._claim(name, offset_bytes, len(piece))
        self._put(piece, position)

    def copy_range(
        self, source: SafetensorsFile, source_start: int, name: str, nbytes: int, offset: int = 0
    ) -> None:
        """Copy bytes of another file, untouched, to byte ``offset`` of a tensor.

        On Linux the kernel copies; a file system that can share blocks copies nothing.

        Args:
            source: The file to copy from.
            source_start: First byte, counted from the beginning of the file.
            name: Tensor to write to.
            nbytes: How many bytes.
            offset: First byte inside the tensor.

        Raises:
            ValueError: the bytes do not fit into the tensor.
            LoraError: the source changed on disk or ends before.
        """
        position = self._claim(name, offset, nbytes)
        with source.opened() as handle:
            done = self._copy_in_kernel(handle.fileno(), source_start, position, nbytes)
            handle.seek(source_start + done)
            buffer = memoryview(bytearray(min(nbytes - done, _COPY_BUFFER)))
            while done < nbytes:
                piece = buffer[: nbytes - done]
                fill(handle, piece, source.path)
                self._put(piece, position + done)
                done += len(piece)

    def _copy_in_kernel(self, source: int, start: int, position: int, nbytes: int) -> int:
        """Return how many bytes the kernel was willing to copy."""
        done = 0
        if not hasattr(os, "copy_file_range"):
            return done
        try:
            while done < nbytes:
                count = os.copy_file_range(
                    source, self._fd, nbytes - done, start + done, position + done
                )
                if not count:
                    break
                done += count
        except OSError:  # between file systems, or one that has no such call
            return done
        return done

    def _claim(self, name: str, offset: int, nbytes: int) -> int:
        """Return the file position of a piece and count it as written."""
        start, stop = self._spans[name]
        if not 0 <= offset <= offset + nbytes <= stop - start:
            raise ValueError(f"{name}: bytes {offset} + {nbytes} of {stop - start}")
        self._missing[name] -= nbytes
        return start + offset

    def _put(self, data: memoryview, position: int) -> None:
        done = 0
        while done < len(data):
            done += _write_at(self._fd, data[done:], position + done)

    def _commit(self) -> None:
        unwritten = {name: count for name, count in self._missing.items() if count}
        if unwritten:
            name, count = next(iter(unwritten.items()))
            raise ValueError(f"{len(unwritten)} tensors not written once: {name} lacks {count} B")
        os.fsync(self._fd)
        self._close()
        require_target(self.path, self.overwrite)
        self._temporary.replace(self.path)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _discard(self) -> None:
        self._close()
        self._temporary.unlink(missing_ok=True)


def _write_at(fd: int, data: memoryview, position: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, position)
    os.lseek(fd, position, os.SEEK_SET)
    return os.write(fd, data)


def require_target(path: Path, overwrite: bool) -> None:
    """Check that a file can take a name.

    Raises:
        LoraError: its folder does not exist, a folder has the name, or a file has it and
            ``overwrite`` is off.
    """
    if not path.parent.is_dir():
        raise LoraError(
            f"{path.name}: the folder to write to does not exist.",
            {"folder": path.parent},
            "make the folder or choose another one.",
        )
    if path.is_dir() or (path.exists() and not overwrite):
        what = "a folder" if path.is_dir() else "a file"
        raise LoraError(
            f"{path.name}: {what} of this name exists.",
            {"path": path},
            "choose another name, or allow the file to be overwritten.",
        )


def _encode_header(
    path: Path, layout: Layout, metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return everything before the data, and each tensor's first byte and byte after the last."""
    _require_writable(path, layout, metadata)
    header: dict[str, object] = {METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    offsets, position = {}, 0
    for name, (dtype, shape) in layout.items():
        start, position = position, position + torch.Size(shape).numel() * dtype.itemsize
        offsets[name] = start, position
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, position],
        }
    text = _encode_json(path, header)
    prefix = len(text).to_bytes(8, "little") + text
    spans = {name: (len(prefix) + a, len(prefix) + b) for name, (a, b) in offsets.items()}
    return prefix, spans


def _encode_json(path: Path, header: Mapping[str, object]) -> bytes:
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise LoraError(
            f"{path.name}: a name or metadata value holds half a character.",
            {"where": repr(error.object[max(error.start - 30, 0) : error.end])},
            "remove it from the name or the metadata.",
        ) from error
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise LoraError(
            f"{path.name}: the header would be too long to be read again.",
            {"bytes": len(text), "longest": MAX_HEADER},
            "save with less metadata.",
        )
    return text


def _require_writable(path: Path, layout: Layout, metadata: Mapping[str, str]) -> None:
    not_text = [key for pair in metadata.items() for key in pair if not isinstance(key, str)]
    if not_text:
        raise LoraError(
            f"{path.name}: metadata must be text.",
            {"got": f"{not_text[0]!r} of type {type(not_text[0]).__name__}"},
            "turn the value into a string, for example with json.dumps.",
        )
    unknown = sorted({str(dtype) for dtype, _ in layout.values()} - set(map(str, _NAMES)))
    if unknown:
        raise LoraError(
            f"{path.name}: safetensors has no name for a dtype.",
            {"dtypes": ", ".join(unknown)},
            "cast the tensors to float32, float16 or bfloat16.",
        )
    if METADATA_KEY in layout:
        raise LoraError(
            f"{path.name}: no tensor can be called {METADATA_KEY}.", {}, "rename the tensor."
        )
