"""What a file's header says of its training, in the keys that kohya's readers and others use."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...lora_core.errors import LoraError, UnknownChoiceError
from ...version import VERSION

CONFIG_KEY = "lora_workbench_config"
"""The whole configuration of the run, JSON."""
VERSION_KEY = "lora_workbench_version"
CAPTIONS_KEY = "lora_workbench_sample_captions"
"""Some captions as they were trained on, a JSON list."""

_STABILITY = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True)
class _Family:
    """How kohya and the modelspec call a family; ``_v`` are those of a v-prediction model."""

    version: str
    version_v: str
    architecture: str
    architecture_v: str
    implementation: str = "diffusers"


_SD1 = _Family("sd_v1", "sd_v1_v", "stable-diffusion-v1", "stable-diffusion-v1")
_SD2 = _Family("sd_v2", "sd_v2_v", "stable-diffusion-v2-512", "stable-diffusion-v2-768-v")
_XL, _REFINER = "stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-refiner"
_SDXL = _Family("sdxl_base_v1-0", "sdxl_base_v1-0", _XL, _XL, _STABILITY)
_SDXL_REFINER = _Family("sdxl_refiner_v1-0", "sdxl_refiner_v1-0", _REFINER, _REFINER, _STABILITY)
_FAMILIES = {
    "sd15": _SD1,
    "sd15-inpaint": _SD1,
    "sd21": _SD2,
    "sd21-inpaint": _SD2,
    "sdxl": _SDXL,
    "sdxl-inpaint": _SDXL,
    "sdxl-refiner": _SDXL_REFINER,
}

# Of kohya sd-scripts; those that TrainingFacts has fields for are left out.
_MORE = (
    "text_encoder_lr unet_lr num_validation_images num_reg_images num_batches_per_epoch "
    "gradient_checkpointing gradient_accumulation_steps lr_warmup_steps lr_scheduler "
    "network_dropout mixed_precision full_fp16 max_token_length cache_latents lowram "
    "noise_offset noise_offset_random_strength multires_noise_iterations "
    "multires_noise_discount adaptive_noise_scale zero_terminal_snr training_comment "
    "sd_scripts_commit_hash max_grad_norm caption_dropout_rate "
    "caption_dropout_every_n_epochs caption_tag_dropout_rate face_crop_aug_range "
    "prior_loss_weight min_snr_gamma scale_weight_norms ip_noise_gamma "
    "ip_noise_gamma_random_strength debiased_estimation loss_type huber_schedule huber_scale "
    "huber_c fp8_base fp8_base_unet validation_seed validation_split max_validation_steps "
    "validate_every_n_epochs validate_every_n_steps resize_interpolation bucket_info "
    "reg_dataset_dirs batch_size_per_device total_batch_size color_aug flip_aug random_crop "
    "shuffle_caption enable_bucket bucket_no_upscale min_bucket_reso max_bucket_reso "
    "keep_tokens sd_model_hash vae_name vae_hash new_vae_hash"
)
KOHYA_KEYS = frozenset(_MORE.split())
"""Names without ``ss_`` that ``TrainingFacts.more`` takes."""


@dataclass(frozen=True)
class TrainingFacts:
    """What a header can say of one run; what is None or empty is left out.

    Attributes:
        name: Of the LoRA: ``ss_output_name``, by which A1111 knows it, and the title.
        family: A name of ``BASES``, or None.
        architecture: The modelspec's word for a model of no known family, such as
            ``"flux-1-dev"``. None writes no modelspec for such a model.
        v_prediction: Whether the model predicts v.
        rank: Of every module, or None when they differ.
        alpha: Of every module, in the unit of rank, or None when they differ.
        network_args: As kohya's ``network_args``, such as ``{"conv_dim": 8}``.
        is_dora: Whether magnitudes are trained.
        algo: LyCORIS' name of the method; None is LoRA or DoRA.
        resolution: Width and height in pixels.
        clip_skip: Counted from 1, the last layer.
        learning_rate: Of the optimiser.
        optimizer: Its name and arguments.
        seed: Of the run.
        steps: Optimiser steps done.
        max_steps: Optimiser steps planned.
        epoch: Epochs done.
        epochs: Epochs planned.
        images: Pictures trained on, without repeats.
        datasets: One mapping for each data set, as ``ss_datasets``.
        dataset_dirs: Folder name to ``{"n_repeats": ..., "img_count": ...}``.
        tag_frequency: Folder name to ``{tag: count}``.
        sample_captions: Some captions as they were trained on.
        base_name: File name of the base.
        base_sha256: Hash of the base's file.
        description: In the author's words.
        author: Who trained it.
        license: Of the LoRA.
        trigger_phrase: Words that call the LoRA.
        session_id: Tells runs apart; None, like the times, keeps equal runs' files equal.
        started_at: Seconds since 1970.
        finished_at: Seconds since 1970.
        date: ISO 8601, of the modelspec.
        config: The whole configuration of the run.
        more: Other ``ss_`` values by a name of ``KOHYA_KEYS``.
    """

    name: str
    family: str | None = None
    architecture: str | None = None
    v_prediction: bool = False
    rank: int | None = None
    alpha: float | None = None
    network_args: Mapping[str, object] = field(default_factory=dict)
    is_dora: bool = False
    algo: str | None = None
    resolution: tuple[int, int] | None = None
    clip_skip: int | None = None
    learning_rate: float | None = None
    optimizer: str | None = None
    seed: int | None = None
    steps: int | None = None
    max_steps: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    images: int | None = None
    datasets: Sequence[Mapping[str, object]] = ()
    dataset_dirs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    tag_frequency: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    sample_captions: Sequence[str] = ()
    base_name: str | None = None
    base_sha256: str | None = None
    description: str | None = None
    author: str | None = None
    license: str | None = None
    trigger_phrase: str | None = None
    session_id: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    date: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    more: Mapping[str, object] = field(default_factory=dict)


def metadata(facts: TrainingFacts) -> dict[str, str]:
    """The header of a trained file, text by name.

    No clock and no random number is asked: without ``session_id`` and times equal facts give equal
    text, and no reader needs them. Numbers that are not finite are null in JSON, which has no
    word for them.

    Raises:
        LoraError: a name in ``more`` is none of ``KOHYA_KEYS``, or a plain number is not finite.

    Source: kohya sd-scripts ``train_network.py``; stability-ModelSpec 1.0.1.
    """
    unknown = sorted(set(facts.more) - KOHYA_KEYS)
    if unknown:
        raise UnknownChoiceError("ss_ name", unknown[0], KOHYA_KEYS)
    entries = {f"ss_{name}": value for name, value in (_kohya(facts) | dict(facts.more)).items()}
    entries |= {f"modelspec.{name}": value for name, value in _modelspec(facts).items()}
    entries |= {
        VERSION_KEY: VERSION,
        CONFIG_KEY: dict(facts.config) or None,
        CAPTIONS_KEY: list(facts.sample_captions) or None,
    }
    return {name: _text(name, value) for name, value in entries.items() if value is not None}


def _kohya(facts: TrainingFacts) -> dict[str, object]:
    family = _FAMILIES.get(facts.family or "")
    return {
        **_kohya_model(facts, family),
        "output_name": facts.name,
        "network_module": "lycoris.kohya" if facts.is_dora or facts.algo else "networks.lora",
        "network_dim": "Dynamic" if facts.rank is None else facts.rank,
        "network_alpha": "Dynamic" if facts.alpha is None else facts.alpha,
        "network_args": _network_args(facts) or None,
        "clip_skip": facts.clip_skip,
        "learning_rate": facts.learning_rate,
        "optimizer": facts.optimizer,
        "seed": facts.seed,
        "steps": facts.steps,
        "max_train_steps": facts.max_steps,
        "epoch": facts.epoch,
        "num_epochs": facts.epochs,
        "num_train_images": facts.images,
        "resolution": "({}, {})".format(*facts.resolution) if facts.resolution else None,
        "datasets": list(facts.datasets) or None,
        "dataset_dirs": dict(facts.dataset_dirs) or None,
        "tag_frequency": dict(facts.tag_frequency) or None,
        "session_id": facts.session_id,
        "training_started_at": facts.started_at,
        "training_finished_at": facts.finished_at,
    }


def _kohya_model(facts: TrainingFacts, family: _Family | None) -> dict[str, object]:
    """A1111 takes a file with metadata, and no word of SDXL or SD 2, for SD 1."""
    known: dict[str, object] = {
        "sd_model_name": facts.base_name,
        "new_sd_model_hash": facts.base_sha256,
    }
    if family is not None:
        known["v2"] = family is _SD2
        known["base_model_version"] = family.version_v if facts.v_prediction else family.version
    elif facts.architecture:
        known["base_model_version"] = facts.architecture
    return known


def _network_args(facts: TrainingFacts) -> dict[str, object]:
    own: dict[str, object] = {"algo": facts.algo} if facts.algo else {}
    if facts.is_dora:
        own = {"algo": "lora", "dora_wd": "True", "wd_on_output": "True"}
    return own | dict(facts.network_args)


def _modelspec(facts: TrainingFacts) -> dict[str, object]:
    family = _FAMILIES.get(facts.family or "")
    if family is None and facts.architecture is None:
        return {}
    architecture = facts.architecture or ""
    if family is not None:
        architecture = family.architecture_v if facts.v_prediction else family.architecture
    is_unet = family is not None
    return {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/lora",
        "implementation": family.implementation if family else "diffusers",
        "title": facts.name,
        "resolution": "{}x{}".format(*facts.resolution) if facts.resolution else None,
        "description": facts.description,
        "author": facts.author,
        "date": facts.date,
        "license": facts.license,
        "trigger_phrase": facts.trigger_phrase,
        "prediction_type": ("v" if facts.v_prediction else "epsilon") if is_unet else None,
        "encoder_layer": facts.clip_skip,
    }


def _text(name: str, value: object) -> str:
    """As kohya writes it: Python's text of a plain value, JSON of the others."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise LoraError(f"{name} is not a finite number.", {"Got": value}, "leave the value out.")
    if isinstance(value, bool | int | float):
        return str(value)
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, sort_keys=True)


def _finite(value: object) -> object:
    """A value as JSON can say it: numbers without end become null, tuples lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
