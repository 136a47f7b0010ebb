"""One run from its configuration to a verified file; a run that is done is not done again."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..lora_core.errors import FailedError, LoraError, UnknownChoiceError
from ..lora_core.lora import Lora, lora_from_tensors
from .checkpointing import checkpointed
from .checks import check
from .config import Output, TrainConfig
from .cost import Cost, size_of
from .dropout import Draws
from .export import Trained, exported_tensors, named_modules
from .injection import injected
from .kinds import LYCORIS
from .loop import Trainer
from .outcome import Outcome, finished, forget_receipt, written
from .picture_feed import PictureFeed
from .processes import Processes
from .targets import TrainedTarget, choose_targets
from .task import TrainingTask
from .trainable import Trainable
from .watcher import Watcher


def train(task: TrainingTask, watcher: Watcher) -> Outcome:
    """Train, or go on with an interrupted run, or give what a finished run left.

    Args:
        task: What is to be done.
        watcher: Is told of each step, and may end the run.

    Raises:
        LoraError: something cannot be used, does nothing, or went wrong; states are kept.
    """
    done = finished(task)
    _refuse_apart(task, done is not None)  # all have looked before one writes
    if done is not None:
        return done
    with _trainer(task, watcher) as trainer:
        before = trainer.resume()
        _refuse_apart(task, before)
        if not trainer.is_complete:
            watcher.noted(_cost(trainer, task.output, trainer.steps - before).to_text())
        trainer.run()
        return written(task, trainer, before)


def look(task: TrainingTask, watcher: Watcher) -> Cost:
    """Check all that ``train`` would, compute one step that moves nothing, and say the cost.

    Raises:
        LoraError: something cannot be used, or would do nothing.
    """
    with _trainer(task, watcher) as trainer:
        return _cost(trainer, task.output, trainer.steps)


def forget(task: TrainingTask) -> None:
    """Delete what a run left, so that it begins again.

    Raises:
        FailedError: something cannot be deleted; what is left is no finished run.
    """
    try:
        forget_receipt(task)
        shutil.rmtree(task.folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FailedError(
            "What the run had done cannot be deleted.",
            {"Cause": error.strerror or error, "Folder": task.folder},
            "delete the folder yourself.",
        ) from error


def planned_steps(config: TrainConfig, batches_per_epoch: int) -> int:
    """Optimiser steps of a run."""
    run = config.run
    return run.steps or -(-run.epochs * batches_per_epoch // run.accumulation)


@contextmanager
def _trainer(task: TrainingTask, watcher: Watcher) -> Iterator[Trainer]:
    """A trainer before its first step; afterwards the model is as it was."""
    model, dataset, config, output = task.model, task.dataset, task.config, task.output
    check(config, model.levels, bool(dataset.validation))
    _refuse_unknown(config, model)
    _refuse_idle_processes(config)
    targets = choose_targets(model.parts, model.weights, config.adapter)
    _refuse_form(output, config.adapter.method, targets)
    draws, seed = Draws(config.run.seed), config.run.seed
    with ExitStack() as stack:
        stack.enter_context(model.loaded())
        depth = config.run.gradient_checkpointing
        stack.enter_context(checkpointed(model.parts["unet"], depth, draws))
        put = injected(model.parts, targets, config.adapter, seed, draws, config.run.precision)
        factors = stack.enter_context(put)
        frozen_text = not config.adapter.text_encoder
        feed = PictureFeed(model, dataset, config.run.batch_size, seed, task.cache, frozen_text)
        steps = planned_steps(config, feed.batches_per_epoch)
        _refuse_after_the_end(config, steps)
        yield Trainer(
            model,
            factors,
            feed,
            config,
            steps,
            task.folder,
            task.key,
            watcher,
            draws,
            lambda: _live_lora(output.name, [f.learnt(is_live=True) for f in factors], model),
        )


def _cost(trainer: Trainer, output: Output, steps: int) -> Cost:
    size = size_of(trainer.factors, trainer.model.parts, output.dtype)
    return Cost(size, trainer.measure(), steps)


def _refuse_unknown(config: TrainConfig, model: Trainable) -> None:
    """Names of a preview that its host does not know."""
    preview = config.preview
    for kind, name, known in (
        ("sampler", preview.sampler, model.samplers),
        ("scheduler", preview.scheduler, model.schedulers),
    ):
        if name not in known:
            raise UnknownChoiceError(kind, name, known)


def _refuse_after_the_end(config: TrainConfig, steps: int) -> None:
    for name, every in (
        ("validation.every", config.validation.every),
        ("preview.every", config.preview.every),
    ):
        if every > steps:
            raise LoraError(
                f"{name} would do nothing.",
                {name: every, "Steps of the run": steps},
                f"take {name} = {steps} or less, or 0.",
            )


def _refuse_apart(task: TrainingTask, found: float) -> None:
    """Refuse processes that see different runs, as machines with folders of their own do."""
    if not Processes().agree(found, task.model.device):
        raise LoraError(
            "The processes do not find the same state of the run.",
            {"Run": task.folder},
            "give all of them the same folder of runs, on a disk that all machines share.",
        )


def _refuse_idle_processes(config: TrainConfig) -> None:
    count, run = Processes().count, config.run
    if count > run.batch_size * run.accumulation:
        raise LoraError(
            "Some processes would have no picture in any step.",
            {"Processes": count, "Pictures of a step": run.batch_size * run.accumulation},
            "raise run.batch_size or run.accumulation, or start fewer processes.",
        )


def _refuse_form(output: Output, method: str, targets: Sequence[TrainedTarget]) -> None:
    if method in LYCORIS and output.form != "kohya":
        raise LoraError(
            f"The form {output.form!r} has no names for what {method!r} trains.",
            {"output.form": output.form, "adapter.method": method},
            'take output.form = "kohya", or train with adapter.method = "lora".',
        )
    components = list(dict.fromkeys(target.component for target in targets))
    if output.form == "peft" and len(components) > 1:
        raise LoraError(
            "A PEFT folder holds the LoRA of one component.",
            {"Components": ", ".join(components)},
            'take output.form = "diffusers", or train one component.',
        )


def _live_lora(name: str, modules: Sequence[Trained], model: Trainable) -> Lora:
    tensors = exported_tensors(named_modules(modules, model.table), dtype="fp32")
    return lora_from_tensors(name, {key: tensor.clone() for key, tensor in tensors.items()})
