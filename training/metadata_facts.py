"""What a run says of itself in the header of its file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .config import AdapterConfig, Form, TrainConfig
from .dataset.captions import plain_caption
from .dataset.facts import dataset_facts, tag_frequency
from .export import Trained, TrainedModule, TrainingFacts, metadata
from .export.metadata import KOHYA_KEYS
from .export.tensors import component_alphas
from .kinds import LYCORIS, idle_fields
from .targets import TrainedTarget
from .task import TrainingTask

_CAPTIONS = 20
_PLACES = ("folder", "regularisation", "mask_folder", "validation_folder")


def training_facts(
    task: TrainingTask,
    targets: Sequence[TrainedTarget],
    modules: Sequence[Trained],
    step: int,
    steps: int,
) -> Mapping[str, str]:
    """Header of a run's file, text by name.

    Args:
        task: The run's.
        targets: What was trained of the base.
        modules: What was learnt of each.
        step: Optimiser steps done.
        steps: Optimiser steps planned.
    """
    model, dataset, config, output = task.model, task.dataset, task.config, task.output
    found = dataset_facts(dataset, config.run.batch_size)
    more = {
        name.removeprefix("ss_"): value
        for name, value in found.items()
        if name.removeprefix("ss_") in KOHYA_KEYS and value is not None
    }
    more |= _kohya_options(config)
    ranks, alphas = _sizes(targets, modules, output.form)
    idle = idle_fields(config.adapter.method, config.adapter.full_matrix)
    per_epoch = found["ss_num_batches_per_epoch"] or 1
    data: dict[str, Any] = {"dataset": asdict(dataset.settings), "training": asdict(config)}
    for name in ("preview", "checkpoint"):  # nothing in the file depends on them
        del data["training"][name]
    data["dataset"] |= dict.fromkeys(_PLACES, "")
    facts = TrainingFacts(
        name=output.name,
        family=model.table.family,
        v_prediction=model.levels.prediction == "v_prediction",
        rank=next(iter(ranks)) if len(ranks) == 1 else None,
        alpha=next(iter(alphas)) if len(alphas) == 1 and "alpha" not in idle else None,
        is_dora=config.adapter.method == "dora",
        algo=LYCORIS.get(config.adapter.method),
        network_args=_lycoris_arguments(config.adapter),
        resolution=dataset.settings.target,
        clip_skip=None if model.clip_skip is None else -model.clip_skip,
        learning_rate=config.optimizer.rate,
        optimizer=config.optimizer.name,
        seed=config.run.seed,
        steps=step,
        max_steps=steps,
        epoch=step * config.run.accumulation // per_epoch,
        epochs=-(-steps * config.run.accumulation // per_epoch),
        images=found["ss_num_train_images"],
        datasets=found["ss_datasets"],
        dataset_dirs=found["ss_dataset_dirs"],
        tag_frequency=tag_frequency(dataset),
        sample_captions=[
            plain_caption(sample, dataset.settings) for sample in dataset.samples[:_CAPTIONS]
        ],
        author=output.author or None,
        license=output.license or None,
        trigger_phrase=output.trigger_phrase or None,
        config=data,
        more=more,
    )
    return metadata(facts)


def _sizes(
    targets: Sequence[TrainedTarget], modules: Sequence[Trained], form: Form
) -> tuple[set[int], set[float]]:
    """Ranks and alphas as the file has them; of LyCORIS' kinds as it was told them.

    PiSSA's file has twice the rank, rsLoRA's scale is in its alpha.
    """
    plain = [module for module in modules if isinstance(module, TrainedModule)]
    if not plain:
        return {target.rank for target in targets}, {target.alpha for target in targets}
    alphas = component_alphas(plain).values() if form == "kohya" else [m.alpha for m in plain]
    return {module.rank for module in plain}, set(alphas)


def _lycoris_arguments(config: AdapterConfig) -> dict[str, object]:
    """As LyCORIS' own ``network_args`` would have them: text; defaults are left out."""
    values = {
        "factor": (config.factor, -1),
        "decompose_both": (config.decompose_both, False),
        "full_matrix": (config.full_matrix, False),
        "use_tucker": (config.tucker, False),
        "constraint": (config.constraint, 0.0),
        "rescaled": (config.rescale, False),
    }
    return {name: str(value) for name, (value, usual) in values.items() if value != usual}


def _kohya_options(config: TrainConfig) -> dict[str, object]:
    optimizer, objective, run = config.optimizer, config.objective, config.run
    return {
        "unet_lr": optimizer.rate,
        "text_encoder_lr": optimizer.text_encoder_rate or optimizer.rate,
        "lr_scheduler": optimizer.schedule,
        "lr_warmup_steps": optimizer.warmup_steps,
        "max_grad_norm": optimizer.clip_norm,
        "gradient_checkpointing": bool(run.gradient_checkpointing),
        "gradient_accumulation_steps": run.accumulation,
        "mixed_precision": "no" if run.precision == "fp32" else run.precision,
        "noise_offset": objective.noise_offset,
        "min_snr_gamma": objective.min_snr_gamma,
        "loss_type": objective.loss,
        "huber_c": objective.huber_delta,
        "network_dropout": config.adapter.dropout,
    }
