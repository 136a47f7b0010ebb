"""What is computed once for a picture or a caption, kept on disk by what it was computed from.

A key holds everything that decides the result, so that nothing is ever stale: an edited picture,
caption, size or autoencoder has another key. Autoencoders that draw give mean and log-variance,
and the draw is made anew for each step.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...lora_core.errors import LoraError
from ...lora_core.files.memory_file import MemoryFile
from ...lora_core.files.safetensors_file import open_safetensors
from ...lora_core.files.write import write_safetensors
from .order import Pick

Tensors = Mapping[str, Tensor]

_RECIPE = 2  # a change of how pixels, masks or captions are read takes another number
_CHECKSUM = "sha256"


class Cache:
    """Tensors by key, one file each.

    Several processes may share a folder: files appear whole, under their final name.

    Args:
        folder: Is made when the first file is.

    Attributes:
        built: How many results were computed through this object.
        damaged: Files that could not be read and were made anew.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.built = 0
        self.damaged: list[Path] = []

    def get(self, key: str, build: Callable[[], Tensors]) -> dict[str, Tensor]:
        """Tensors of a key, from disk or from ``build``.

        Args:
            key: Of one of the functions below.
            build: Computes them, on any device; its result must depend on nothing but the key.

        Returns:
            Name to tensor, on the CPU, of the dtypes that ``build`` gave; the same bits whether
            they were read or built.

        Raises:
            LoraError: ``build`` gave NaN or infinity, which is never kept.
        """
        path = self._path(key)
        found = self._read(path)
        if found is not None:
            return found
        built = {name: tensor.detach().cpu().contiguous() for name, tensor in build().items()}
        _require_finite(built)
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum = MemoryFile(key, built).sha256()
        write_safetensors(path, built, {_CHECKSUM: checksum}, overwrite=True)
        self.built += 1
        return built

    def has(self, key: str) -> bool:
        """Whether a file is there, without reading it: for telling what is left to do."""
        return self._path(key).is_file()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        if not path.is_file():
            return None
        try:
            file = open_safetensors(path)
            tensors = file.read_many(file.tensors)
            if MemoryFile(path.stem, tensors).sha256() == file.metadata.get(_CHECKSUM):
                return tensors
        except LoraError:  # cut short, or its header is damaged
            pass
        self.damaged.append(path)
        return None


def latents_key(pick: Pick, autoencoder: str, dtype: torch.dtype) -> str:
    """Key of a pick's latents.

    Args:
        pick: The bytes of its file, its resize, cut and mirroring count.
        autoencoder: What names the autoencoder's weights and how it is run.
        dtype: Of the result.
    """
    fit = pick.sample.fit
    return _key(
        "latents",
        picture=pick.sample.sha256,
        resized=fit.resized,
        bucket=fit.bucket,
        crop=pick.crop,
        flip=pick.flip,
        autoencoder=autoencoder,
        dtype=str(dtype),
    )


def mask_key(pick: Pick, floor: float = 0.0, factor: int = 8) -> str:
    """Key of ``pictures.mask_tensor``."""
    fit = pick.sample.fit
    return _key(
        "mask",
        mask=pick.sample.mask_sha256,
        opacity=pick.sample.mask == pick.sample.path,
        resized=fit.resized,
        bucket=fit.bucket,
        crop=pick.crop,
        flip=pick.flip,
        floor=floor,
        factor=factor,
    )


def text_key(caption: str, encoder: str, dtype: torch.dtype, **options: str | int | float) -> str:
    """Key of a caption's embeddings.

    Args:
        caption: As it is encoded.
        encoder: What names the text encoders' weights.
        dtype: Of the result.
        options: Whatever else decides it, such as ``clip_skip`` or ``max_length``.
    """
    return _key("text", caption=caption, encoder=encoder, dtype=str(dtype), options=options)


def _key(kind: str, **parts: object) -> str:
    text = json.dumps([_RECIPE, kind, parts], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _require_finite(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise LoraError(
                "A result to be cached holds NaN or infinity.",
                {"tensor": name, "dtype": tensor.dtype, "shape": tuple(tensor.shape)},
                "run the autoencoder or text encoder in float32 or bfloat16.",
            )
