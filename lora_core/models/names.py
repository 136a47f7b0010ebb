"""Every name under which writers of LoRA files address a module."""

import re
from collections.abc import Iterator

_ATTENTION_OF_UNET = (".attn1.to_", ".attn2.to_")
_OLD_PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_UNET_FLAT = ("lora_unet_", "lycoris_")
_DIFFUSERS_DOTTED = ("", "unet.", "base_model.model.", "unet.base_model.model.")
_LDM_DOTTED = ("", "unet.", "diffusion_model.", "model.diffusion_model.", "base_model.model.")
_TE_FLAT = {
    "te1": ("lora_te_", "lora_te1_", "lycoris_"),
    "te2": ("lora_te2_", "lora_prior_te_", "lycoris_"),
    "te2 alone": ("lora_te_", "lora_te2_", "lora_prior_te_", "lycoris_"),
}
_TE_PIPELINE = {
    "te1": ("text_encoder.",),
    "te2": ("text_encoder_2.",),
    "te2 alone": ("text_encoder.", "text_encoder_2."),
}
_PEFT = ("", "base_model.model.")

# Prefixes seen in real but malformed files -> the right ones, applied in order, one on the other.
_REWRITES = (
    ("oft_unet_", "lora_unet_"),
    ("oft_te", "lora_te"),
    ("lora_unet_unet_", "lora_unet_"),
    ("lora_unet__", "lora_unet_"),
    ("transformer.", ""),
    ("base_model.model.", ""),
    ("unet.unet.", "unet."),
)

# Names of x-labs (USO too), which put all LoRAs of a Flux block on its attention processor.
_PROCESSOR = re.compile(r"((?:double|single)_blocks\.\d+)\.processor\.(\w+)")
_PROCESSOR_MODULES = {
    "qkv_lora1": "img_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora2": "txt_attn.proj",
    "qkv_lora": "linear1_qkv",
    "proj_lora": "linear2",
}


def flat(name: str) -> str:
    """Write a module name as kohya does, with underscores for dots."""
    return name.replace(".", "_")


def unet_names(ldm: str, diffusers: str | None) -> Iterator[str]:
    """Yield the names of one UNet module.

    Args:
        ldm: Its ldm name without prefix.
        diffusers: Its diffusers name without prefix, or None where diffusers has none.
    """
    yield from (prefix + flat(ldm) for prefix in _UNET_FLAT)
    yield from (prefix + ldm for prefix in _LDM_DOTTED)
    if diffusers is None:
        return
    yield from _diffusers_unet_names(diffusers)
    if diffusers.startswith("add_embedding."):
        yield from _diffusers_unet_names(diffusers.replace("add_", "class_", 1))


def _diffusers_unet_names(name: str) -> Iterator[str]:
    yield from (prefix + flat(name) for prefix in _UNET_FLAT)
    yield from (prefix + name for prefix in _DIFFUSERS_DOTTED)
    if any(part in name for part in _ATTENTION_OF_UNET):
        owner, projection = name.rsplit(".to_", 1)
        old = f"{owner}.processor.to_{projection.removesuffix('.0')}"
        yield from (old, f"unet.{old}")


def text_encoder_names(name: str, role: str, comfy: str) -> Iterator[str]:
    """Yield the names of one text encoder module.

    Args:
        name: Its Hugging Face name, with ``text_model.`` where that belongs.
        role: ``"te1"``, ``"te2"``, or ``"te2 alone"`` for a second encoder without the first
            (the SDXL refiner), which files number in every way.
        comfy: ComfyUI's name for the encoder, e.g. ``clip_l``.
    """
    yield from (prefix + flat(name) for prefix in _TE_FLAT[role])
    yield f"{comfy}.transformer.{name}"
    yield f"text_encoders.{comfy}.transformer.{name}"
    spellings = dict.fromkeys((name, name.removeprefix("text_model."), *_old_spellings(name)))
    for pipeline in ("", *_TE_PIPELINE[role]):
        for peft in _PEFT:
            yield from (f"{pipeline}{peft}{spelling}" for spelling in spellings)


def _old_spellings(name: str) -> Iterator[str]:
    owner, _, projection = name.rpartition(".self_attn.")
    if projection in _OLD_PROJECTIONS:
        old = f"{owner}.self_attn.{_OLD_PROJECTIONS[projection]}"
        yield from (old, old.removeprefix("text_model."))


def rewritten(lora_key: str) -> Iterator[str]:
    """Yield other spellings of a module name: malformed ones cured step by step, x-labs' own.

    A caller takes the first that its table knows; no rewrite is a guess by itself.

    Args:
        lora_key: A name that the table does not know.
    """
    name = lora_key
    for wrong, right in _REWRITES:
        if name.startswith(wrong):
            name = right + name.removeprefix(wrong)
            yield name
    stripped = name.rstrip("._").removesuffix("_lora")
    if stripped != name:
        yield stripped
    if stripped.startswith("lora_") and "." in stripped:
        yield flat(stripped)
    processor = _PROCESSOR.fullmatch(name)
    if processor and processor[2] in _PROCESSOR_MODULES:
        yield f"{processor[1]}.{_PROCESSOR_MODULES[processor[2]]}"
