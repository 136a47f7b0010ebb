"""Pictures in and out: float tensors ``(batch, height, width, 3)`` from 0 to 1."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ....lora_core.errors import LoraError
from ..folders import numbered
from .base import CoreNode


class LoadImage(CoreNode):
    """Reads a picture of the input folder, turned as its camera says; alpha becomes the mask."""

    DISPLAY_NAME = "Load Image"
    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        return {"required": {"image": (cls.host.folders.inputs(), {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:  # noqa: N802  ComfyUI's name
        """Files in subfolders are good too, so existence is what counts, not the list."""
        try:
            cls.host.folders.input_file(image)
        except LoraError:
            return f"Invalid image file: {image}"
        return True

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:  # noqa: N802  ComfyUI's name
        """Changes when the file does."""
        stat = cls.host.folders.input_file(image).stat()
        return f"{stat.st_size}:{stat.st_mtime_ns}"

    def execute(self, image: str) -> tuple[Tensor, Tensor]:
        """Every frame of the size of the first; the mask is 1 where the picture is transparent."""
        path = self.host.folders.input_file(image)
        try:
            with Image.open(path) as opened:
                frames = [ImageOps.exif_transpose(f) for f in ImageSequence.Iterator(opened)]
        except (OSError, SyntaxError, ValueError) as error:
            raise LoraError(
                f"{image} cannot be read as a picture.",
                {"Cause": error},
                "use an intact PNG, JPEG or WebP file.",
            ) from error
        frames = [frame for frame in frames if frame.size == frames[0].size]
        pictures = [_rgb(frame) for frame in frames]
        return torch.stack(pictures), torch.stack([_mask(frame) for frame in frames])


class SaveImage(CoreNode):
    """Writes PNG files with the graph in their metadata, as ComfyUI does."""

    DISPLAY_NAME = "Save Image"
    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_NODE = True
    KIND = "output"
    COMPRESSION = 4

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        return {
            "required": {
                "images": ("IMAGE", {}),
                "filename_prefix": ("STRING", {"default": "ComfyUI"}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def execute(
        self,
        images: Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: Mapping[str, Any] | None = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write the batch; numbers go on after those that are there."""
        root: Path = getattr(self.host.folders, self.KIND)
        height, width = images[0].shape[:2]
        places = numbered(root, filename_prefix, width, height)
        info = _metadata(prompt, extra_pnginfo)
        written = []
        for index, image in enumerate(images):
            name = places.name(index)
            _png(image).save(places.folder / name, pnginfo=info, compress_level=self.COMPRESSION)
            written.append({"filename": name, "subfolder": places.subfolder, "type": self.KIND})
        return {"ui": {"images": written}, "result": (images,)}


class PreviewImage(SaveImage):
    """Writes PNG files into the temporary folder."""

    DISPLAY_NAME = "Preview Image"
    KIND = "temp"
    COMPRESSION = 1

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        hidden = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
        return {"required": {"images": ("IMAGE", {})}, "hidden": hidden}


def _metadata(prompt: Mapping[str, Any] | None, extra: Mapping[str, Any] | None) -> PngInfo:
    info = PngInfo()
    if prompt is not None:
        info.add_text("prompt", json.dumps(prompt))
    for name, data in (extra or {}).items():
        info.add_text(name, json.dumps(data))
    return info


def _png(image: Tensor) -> Image.Image:
    levels = (image.cpu().float().numpy() * 255.0).clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels)


def _rgb(frame: Image.Image) -> Tensor:
    if frame.mode == "I":  # 16-bit grey
        frame = frame.point(lambda level: level * (1 / 255))
    return torch.from_numpy(np.array(frame.convert("RGB")).astype(np.float32) / 255.0)


def _mask(frame: Image.Image) -> Tensor:
    """``(height, width)``; all of a picture without transparency is ``(64, 64)`` zeros, as core."""
    if "A" in frame.getbands():
        alpha = frame.getchannel("A")
    elif frame.mode == "P" and "transparency" in frame.info:
        alpha = frame.convert("RGBA").getchannel("A")
    else:
        return torch.zeros(64, 64)
    return 1.0 - torch.from_numpy(np.array(alpha).astype(np.float32) / 255.0)
