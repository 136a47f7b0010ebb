"""Latents: made, sampled, decoded, encoded. ``{"samples": (batch, 4, height / 8, width / 8)}``."""

from typing import Any

import torch
from torch import Tensor

from ..autoencoder import decoded, encoded
from ..handles import Model, Vae
from ..sampling import SAMPLERS, SCHEDULERS, sample
from .base import CoreNode
from .loaders import require

_SCALE = 8  # pixels a latent covers


class EmptyLatentImage(CoreNode):
    """Latents of zeros."""

    DISPLAY_NAME = "Empty Latent Image"
    CATEGORY = "model/latent"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        side = {"default": 512, "min": 16, "max": 16384, "step": 8}
        batch = {"default": 1, "min": 1, "max": 4096}
        return {
            "required": {
                "width": ("INT", side),
                "height": ("INT", side),
                "batch_size": ("INT", batch),
            }
        }

    def execute(self, width: int, height: int, batch_size: int = 1) -> tuple[dict[str, Tensor]]:
        """A batch of zeros."""
        return ({"samples": torch.zeros(batch_size, 4, height // _SCALE, width // _SCALE)},)


class KSampler(CoreNode):
    """Denoises latents with a model and two conditionings."""

    DISPLAY_NAME = "KSampler"
    CATEGORY = "model/sampling"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        seed = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}
        return {
            "required": {
                "model": ("MODEL", {}),
                "seed": ("INT", seed),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "cfg": (
                    "FLOAT",
                    {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01},
                ),
                "sampler_name": (list(SAMPLERS), {}),
                "scheduler": (list(SCHEDULERS), {}),
                "positive": ("CONDITIONING", {}),
                "negative": ("CONDITIONING", {}),
                "latent_image": ("LATENT", {}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def execute(
        self,
        model: Model,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        denoise: float = 1.0,
    ) -> tuple[dict[str, Any]]:
        """Sample with the LoRAs that this MODEL carries."""
        samples = sample(
            model.loaded(),
            positive,
            negative,
            latent_image["samples"],
            seed,
            steps,
            cfg,
            sampler_name,
            scheduler,
            denoise,
            callback=lambda step, _x0, _x, total: self.host.report_progress(step + 1, total),
            noise_mask=latent_image.get("noise_mask"),
            batch_index=latent_image.get("batch_index"),
        )
        return ({**latent_image, "samples": samples},)


class VAEDecode(CoreNode):
    """Latents to pictures."""

    DISPLAY_NAME = "VAE Decode"
    CATEGORY = "model/latent"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        return {"required": {"samples": ("LATENT", {}), "vae": ("VAE", {})}}

    def execute(self, samples: dict[str, Tensor], vae: Vae | None) -> tuple[Tensor]:
        """Decode the batch."""
        return (decoded(require(vae, "VAE").part, samples["samples"]),)


class VAEEncode(CoreNode):
    """Pictures to latents."""

    DISPLAY_NAME = "VAE Encode"
    CATEGORY = "model/latent"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        return {"required": {"pixels": ("IMAGE", {}), "vae": ("VAE", {})}}

    def execute(self, pixels: Tensor, vae: Vae | None) -> tuple[dict[str, Tensor]]:
        """Encode the batch; what is more than a multiple of 8 pixels is cut off on all sides."""
        return ({"samples": encoded(require(vae, "VAE").part, pixels)},)
