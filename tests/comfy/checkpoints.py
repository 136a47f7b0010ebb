"""Random SD1.5-family checkpoints, and LoRAs for them, in the names of ComfyUI's own classes.

Everything here needs ComfyUI on ``sys.path`` (the ``comfy`` fixture) and depends on the seed alone.
"""

import json
import math
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SD15_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
# ComfyUI recognises SD1.5 by model_channels 320 and context_dim 768: only the depth can shrink.
SLIM_UNET = SD15_UNET | {
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
}

# A prime count, so that the rows of a tiled tensor never line up with one another.
NOISE_COUNT = 4_000_037


@dataclass(frozen=True)
class Recipe:
    """One checkpoint. ``version`` changes with the content: an older cached file is not used."""

    name: str
    unet: Mapping[str, object]
    text_encoder_dtype: torch.dtype
    version: int = 1

    @property
    def file_name(self) -> str:
        """Name in the cache and in ComfyUI's list of checkpoints."""
        return f"{self.name}-v{self.version}.safetensors"


# The text encoder is most of a slim file; fp8 halves it. On the CPU ComfyUI loads it as float32.
SLIM = Recipe("slim-sd15", SLIM_UNET, torch.float8_e4m3fn)
FULL = Recipe("full-sd15", SD15_UNET, torch.float16)


@dataclass(frozen=True)
class LoraTarget:
    """A weight a LoRA can change: its name in diffusers, its key in ComfyUI's model, its shape."""

    module: str
    target_key: str
    shape: tuple[int, ...]


def cached_checkpoint(cache: Path, recipe: Recipe) -> Path:
    """Return the recipe's file in ``cache``, writing it the first time (slim 180 MB, full 2 GB)."""
    path = cache / recipe.file_name
    if not path.is_file():
        save_atomically(checkpoint_tensors(recipe), path)
    return path


def save_atomically(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
):
    """Write a whole safetensors file or none."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="write-") as scratch:
        part = Path(scratch) / path.name
        save_file(dict(tensors), part, metadata=metadata and dict(metadata))
        part.replace(path)


def checkpoint_tensors(recipe: Recipe) -> dict[str, Tensor]:
    """Return every tensor of the checkpoint, in the names of a published SD1.5 file."""
    from comfy.taesd.taesd import TAESD

    half = torch.float16
    noise = torch.randn(NOISE_COUNT, generator=torch.Generator().manual_seed(15))
    return {
        **random_weights(meta_unet(recipe), "model.diffusion_model.", half, noise),
        **random_weights(
            meta_clip_l(), "cond_stage_model.transformer.", recipe.text_encoder_dtype, noise
        ),
        **random_weights(TAESD(), "first_stage_model.", half, noise),
    }


def meta_unet(recipe: Recipe) -> nn.Module:
    """Return ComfyUI's UNet of the recipe without memory for its weights."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**recipe.unet, device="meta", operations=comfy.ops.disable_weight_init)


def meta_clip_l() -> nn.Module:
    """Return ComfyUI's CLIP-L, without memory for its weights; SD1.5 has no text projection."""
    import comfy
    import comfy.ops
    from comfy.clip_model import CLIPTextModel

    config = json.loads((Path(comfy.ops.__file__).parent / "sd1_clip_config.json").read_text())
    clip = CLIPTextModel(config, torch.float16, "meta", comfy.ops.disable_weight_init)
    del clip.text_projection
    return clip


def random_weights(
    module: nn.Module, prefix: str, dtype: torch.dtype, noise: Tensor
) -> dict[str, Tensor]:
    """Return weights of the module's shapes that keep activations near their size."""
    return {
        prefix + key: random_weight(prefix + key, like, noise).to(dtype)
        for key, like in module.state_dict().items()
    }


def random_weight(key: str, like: Tensor, noise: Tensor) -> Tensor:
    """Return a float32 tensor like ``like``: gains 1, small biases, matrices N(0, 1 / fan_in)."""
    if like.ndim == 0:
        return like.detach().clone()
    if like.ndim == 1 and key.endswith("weight"):
        return torch.ones(like.shape)
    return tiled(key, like.shape, noise) * spread(key, like.shape)


def spread(key: str, shape: torch.Size) -> float:
    """Return the standard deviation of a random tensor."""
    if len(shape) == 1:
        return 0.01
    return 0.02 if "embedding" in key else 1 / math.sqrt(math.prod(shape[1:]))


def tiled(key: str, shape: torch.Size, noise: Tensor) -> Tensor:
    """Return ``noise`` repeated over ``shape``, from a start that depends on ``key``.

    Drawing 1 G weights one by one would take most of a minute.
    """
    count = math.prod(shape)
    start = zlib.crc32(key.encode()) % NOISE_COUNT
    repeats = -(-(start + count) // NOISE_COUNT)
    return noise.repeat(repeats)[start : start + count].reshape(shape)


def lora_targets(recipe: Recipe) -> tuple[LoraTarget, ...]:
    """Return every matrix and kernel of the UNet and every projection of the text encoder."""
    return (*unet_targets(recipe), *text_encoder_targets())


def unet_targets(recipe: Recipe) -> Iterator[LoraTarget]:
    """Yield the UNet's targets; ComfyUI's own table gives the diffusers names."""
    import comfy.utils

    shapes = {key: tuple(like.shape) for key, like in meta_unet(recipe).state_dict().items()}
    for diffusers_key, key in comfy.utils.unet_to_diffusers(recipe.unet).items():
        if diffusers_key.endswith(".weight") and len(shapes.get(key, ())) >= 2:
            yield LoraTarget(
                f"unet.{diffusers_key.removesuffix('.weight')}",
                f"diffusion_model.{key}",
                shapes[key],
            )


def text_encoder_targets() -> Iterator[LoraTarget]:
    """Yield the attention and MLP projections of CLIP-L."""
    for key, like in meta_clip_l().state_dict().items():
        if ".layers." in key and key.endswith(".weight") and like.ndim == 2:
            yield LoraTarget(
                f"text_encoder.{key.removesuffix('.weight')}",
                f"clip_l.transformer.{key}",
                tuple(like.shape),
            )


def attention_targets(targets: Iterable[LoraTarget]) -> tuple[LoraTarget, ...]:
    """Return the query, key, value and output projections: what every naming can express."""
    return tuple(
        target for target in targets if ".attn" in target.module or ".self_attn." in target.module
    )


def kohya_name(target: LoraTarget) -> str:
    """``unet.mid_block.x`` -> ``lora_unet_mid_block_x``; ``text_encoder.x`` -> ``lora_te_x``."""
    component, _, path = target.module.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component]
    return prefix + path.replace(".", "_")


def attention_processor_name(target: LoraTarget) -> str:
    """``attn1.to_out.0`` -> ``attn1.processor.to_out_lora``; CLIP: ``x.lora_linear_layer``."""
    if target.module.startswith("text_encoder."):
        return f"{target.module}.lora_linear_layer"
    parent, _, projection = target.module.removesuffix(".0").rpartition(".")
    if not parent.endswith((".attn1", ".attn2")):
        raise ValueError(f"diffusers-old has no name for {target.module}.")
    return f"{parent}.processor.{projection}_lora"


# naming -> (name of a module, suffix of down, suffix of up)
NAMINGS = {
    "kohya": (kohya_name, "lora_down.weight", "lora_up.weight"),
    "diffusers-old": (attention_processor_name, "down.weight", "up.weight"),
    "diffusers": (lambda target: target.module, "lora.down.weight", "lora.up.weight"),
    "peft": (lambda target: target.module, "lora_A.weight", "lora_B.weight"),
}


def write_lora(
    path: Path,
    targets: Iterable[LoraTarget],
    *,
    naming: str = "kohya",
    rank: int = 4,
    alpha: float | None = None,
    seed: int = 0,
    scale: float = 0.05,
    dtype: torch.dtype = torch.float16,
):
    """Write a random LoRA.

    Args:
        path: the file to write; replaced when it exists.
        targets: what it changes; ``diffusers-old`` needs ``attention_targets(...)``.
        naming: a key of ``NAMINGS``.
        rank: of every module.
        alpha: a tensor beside the factors, or in the header (peft); None writes none.
        seed: equal seeds give equal files.
        scale: standard deviation of ``up``; that of a delta is ``scale * sqrt(rank / in)``.
        dtype: of the factors.
    """
    module_name, down_suffix, up_suffix = NAMINGS[naming]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for target in targets:
        name, (down, up) = module_name(target), random_factors(target.shape, rank, scale, generator)
        tensors[f"{name}.{down_suffix}"] = down.to(dtype)
        tensors[f"{name}.{up_suffix}"] = up.to(dtype)
        if alpha is not None and naming != "peft":
            tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    header = adapter_header(rank, alpha) if naming == "peft" and alpha is not None else None
    save_atomically(tensors, path, header)


def random_factors(
    shape: tuple[int, ...], rank: int, scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return ``down``, ``(rank, in, *kernel)``, and ``up``, ``(out, rank, *1)``, in float32."""
    out, fan_in = shape[0], math.prod(shape[1:])
    down = torch.randn(rank, *shape[1:], generator=generator) / math.sqrt(fan_in)
    up = torch.randn(out, rank, *(1 for _ in shape[2:]), generator=generator) * scale
    return down, up


def adapter_header(rank: int, alpha: float) -> dict[str, str]:
    """Return the header diffusers writes beside PEFT names: one LoraConfig per component."""
    config = {
        f"{component}.{name}": value
        for component in ("unet", "text_encoder")
        for name, value in (("r", rank), ("lora_alpha", alpha))
    }
    return {"lora_adapter_metadata": json.dumps(config)}
