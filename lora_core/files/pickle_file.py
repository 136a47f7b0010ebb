"""Files of pickled tensors, read without running what they carry."""

import pickle
import struct
from collections.abc import Iterable, Mapping
from functools import cached_property
from io import FileIO
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import DamagedFileError, UnsupportedFormatError
from .other_files import refuse_other_files
from .tensor_file import FileStamp, TensorInfo, hash_file, require_file

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")

_ALPHA_SUFFIX = ".alpha"
_CONVERT_FIX = (
    "convert it to .safetensors with the tool that made it, or get the file as .safetensors."
)
_DAMAGED_FIX = "the file is damaged or incomplete; download or copy it again."
# What torch.load raised on 50,000 altered files, beside UnpicklingError.
_DAMAGE = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


class PickleFile:
    """A dict of tensors in torch's own format, held in memory as a whole.

    Attributes:
        path: The file on disk.
        metadata: Empty; the format has no place for it.
        tensors: Every tensor by name, in file order; offsets are 0 and the size in bytes.
    """

    def __init__(self, path: Path) -> None:
        require_file(path)
        self.path = path
        self.metadata: Mapping[str, str] = MappingProxyType({})
        with FileIO(path) as handle:
            self._stamp = FileStamp.of(handle)
            refuse_other_files(handle, path)
            loaded = _load(handle, path)
        self._data = _tensors_of(loaded, path, self._stamp.size)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {key: TensorInfo(t.dtype, tuple(t.shape), 0, t.nbytes) for key, t in self._data.items()}
        )

    def read(self, key: str) -> Tensor:
        """Return a copy of one tensor."""
        return self._data[key].clone(memory_format=torch.contiguous_format)

    def read_many(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return copies of several tensors in the order of ``keys``."""
        return {key: self.read(key) for key in keys}

    def read_numbers(self, keys: Iterable[str]) -> dict[str, float]:
        """Return tensors of one element as numbers."""
        return {key: float(self._data[key]) for key in keys}

    def sha256(self) -> str:
        """Return the hash of the file's bytes, in hexadecimal; computed once.

        Raises:
            LoraError: the file changed on disk.
        """
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        return hash_file(self.path, self._stamp)


def open_pickle(path: str | Path) -> PickleFile:
    """Load a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file of tensors; no code of it is run.

    Accepted are a dict of tensors, that dict under ``state_dict``, and plain numbers for names
    that end in ``.alpha``.

    Raises:
        UnsupportedFormatError: the file carries code, or holds something else than tensors.
        DamagedFileError: it cannot be read.
        LoraError: it is missing or is a folder.
    """
    return PickleFile(Path(path))


def _load(handle: FileIO, path: Path) -> object:
    try:
        return torch.load(handle, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        text = str(error)
        if "GLOBAL" in text or "TorchScript" in text:
            raise UnsupportedFormatError(
                f"{path.name}: the file carries code, which is not run.",
                {"file": path, "torch says": _reason(text)},
                _CONVERT_FIX,
            ) from error
        raise DamagedFileError(
            f"{path.name}: the file cannot be read.",
            {"file": path, "torch says": _reason(text) or type(error).__name__},
            _DAMAGED_FIX,
        ) from error


def _reason(text: str) -> str:
    """The line of torch's message that is about this file, without its advice to run the code."""
    lines = [line.strip() for line in text.splitlines()]
    telling = [line for line in lines if "GLOBAL" in line or "WeightsUnpickler error" in line]
    return next(iter([*telling, *lines]), "")[:200]


def _tensors_of(loaded: object, path: Path, file_size: int) -> dict[str, Tensor]:
    """Return the tensors of the dict, or of the dict under ``state_dict``."""
    inner = loaded.get("state_dict") if isinstance(loaded, dict) else None
    state = inner if isinstance(inner, dict) else loaded
    if not isinstance(state, dict):
        facts = {"file": path, "expected": "a dict of tensors", "got": type(state).__name__}
        headline = f"{path.name}: the file holds no dict of tensors."
        raise UnsupportedFormatError(headline, facts, _CONVERT_FIX)
    return {key: _tensor_of(key, value, path, file_size) for key, value in state.items()}


def _tensor_of(key: object, value: object, path: Path, file_size: int) -> Tensor:
    if isinstance(key, str) and key.endswith(_ALPHA_SUFFIX) and type(value) in (int, float):
        return torch.tensor(value, dtype=torch.float32)
    if not (isinstance(key, str) and isinstance(value, Tensor) and _is_plain(value)):
        raise UnsupportedFormatError(
            f"{path.name}: the file holds more than plain tensors.",
            {"file": path, "name": repr(key)[:120], "got": type(value).__name__},
            _CONVERT_FIX,
        )
    if value.nbytes > file_size:  # strides of 0 let a few bytes claim any size
        raise DamagedFileError(
            f"{path.name}: a tensor is larger than the file.",
            {"file": path, "tensor": key, "its bytes": value.nbytes, "bytes in file": file_size},
            _DAMAGED_FIX,
        )
    return value.detach()


def _is_plain(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and not tensor.is_quantized
    return strided and tensor.device.type == "cpu"
