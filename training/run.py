"""One run from its configuration to a verified file; a run that is done is not done again."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ..lora_core.errors import FailedError, LoraError
from ..lora_core.lora import Lora, load_lora, lora_from_tensors
from ..version import VERSION
from .checkpointing import checkpointed
from .checks import check
from .config import Output, TrainConfig
from .cost import cost_text, size_of
from .dataset.data import Dataset
from .dropout import Draws
from .export import Trained, export, exported_tensors, named_modules
from .hashes import weights_hash
from .injection import injected
from .kinds import LYCORIS
from .loop import History, Trainer
from .metadata_facts import training_facts
from .picture_feed import PictureFeed
from .processes import Processes
from .targets import TrainedTarget, choose_targets
from .trainable import Trainable
from .watcher import Watcher

_RECEIPT = "receipt.json"
_MEASURED = ("losses", "validation")


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        path: The file in the run's folder.
        lora: Its content.
        history: What was measured.
        steps: Optimiser steps done in all, and
        new_steps: in this call.
        is_complete: Whether the run came to its end.
        warnings: What a user may not expect of the file.
    """

    path: Path
    lora: Lora
    history: History
    steps: int
    new_steps: int
    is_complete: bool
    warnings: tuple[str, ...]


def run_key(model: Trainable, dataset: Dataset, config: TrainConfig) -> str:
    """Of everything that decides what is learnt; previews, checkpoints and the output do not."""
    told = asdict(config)
    del told["preview"], told["checkpoint"]
    parts = [
        VERSION,
        told,
        dataset.sha256,
        model.levels.prediction,
        weights_hash({"signal": model.levels.signal, "noise": model.levels.noise}),
        model.identity,
        model.autoencoder,
        model.text,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def train(
    model: Trainable,
    dataset: Dataset,
    config: TrainConfig,
    output: Output,
    folder: Path,
    cache: Path,
    watcher: Watcher,
    key: str,
) -> Outcome:
    """Train, or go on with an interrupted run, or give what a finished run left.

    Args:
        model: Of a host.
        dataset: Of a scan.
        config: How.
        output: What to make of it.
        folder: Of this run alone: its states, its file.
        cache: Of latents and conditions, shared by runs.
        watcher: Is told of each step, and may end the run.
        key: ``run_key`` of the same.

    Raises:
        LoraError: something cannot be used, does nothing, or went wrong; states are kept.
    """
    finished = _finished(folder, key, output)
    Processes().wait()  # all have looked before one writes
    if finished is not None:
        return finished
    with _trainer(model, dataset, config, output, folder, cache, watcher, key) as trainer:
        before = trainer.resume()
        if not trainer.is_complete:
            watcher.noted(_cost(trainer, output, trainer.steps - before))
        trainer.run()
        path, warnings = _finish(trainer, dataset, output)
    new, is_complete = trainer.step - before, trainer.is_complete
    return Outcome(path, load_lora(path), trainer.history, trainer.step, new, is_complete, warnings)


def look(
    model: Trainable,
    dataset: Dataset,
    config: TrainConfig,
    output: Output,
    cache: Path,
    watcher: Watcher,
) -> str:
    """Check all that ``train`` would, compute one step that moves nothing, and say the cost.

    Raises:
        LoraError: something cannot be used, or would do nothing.
    """
    with _trainer(model, dataset, config, output, Path(), cache, watcher, "") as trainer:
        return _cost(trainer, output, trainer.steps)


@contextmanager
def _trainer(
    model: Trainable,
    dataset: Dataset,
    config: TrainConfig,
    output: Output,
    folder: Path,
    cache: Path,
    watcher: Watcher,
    key: str,
) -> Iterator[Trainer]:
    """A trainer before its first step; afterwards the model is as it was."""
    check(config, model.levels, bool(dataset.validation))
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
        feed = PictureFeed(model, dataset, config.run.batch_size, seed, cache, frozen_text)
        yield Trainer(
            model,
            factors,
            feed,
            config,
            planned_steps(config, feed.batches_per_epoch),
            folder,
            key,
            watcher,
            draws,
            lambda: _live_lora(output.name, [f.learnt(is_live=True) for f in factors], model),
        )


def _cost(trainer: Trainer, output: Output, steps: int) -> str:
    size = size_of(trainer.factors, trainer.model.parts, output.dtype)
    return cost_text(size, trainer.measure(), steps)


def _finish(trainer: Trainer, dataset: Dataset, output: Output) -> tuple[Path, tuple[str, ...]]:
    """Write the file of a run that came to its end or was stopped; all processes wait for it."""
    path = trainer.folder / _file_name(output, None if trainer.is_complete else trainer.step)
    warnings: tuple[str, ...] = ()
    if trainer.processes.is_first:
        targets = [each.trained for each in trainer.factors]
        config, model, steps = trainer.config, trainer.model, trainer.steps
        facts = training_facts(dataset, config, output, model, targets, trainer.step, steps)
        with trainer.averaged():
            modules = [each.learnt() for each in trainer.factors]
        try:
            warnings = _export(modules, trainer, path, output, facts)
        except OSError as error:
            raise FailedError(
                "The LoRA cannot be written.",
                {"Cause": error.strerror or error, "Folder": path.parent},
                "make room on the disk and run the same again; no step is done anew.",
            ) from error
    trainer.processes.wait()
    return path, warnings


def _file_name(output: Output, step: int | None) -> str:
    """In a run's folder; PEFT's form is a folder itself."""
    ending = "" if output.form == "peft" else ".safetensors"
    return f"lora{ending}" if step is None else f"lora-step-{step:08}{ending}"


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


def forget(folder: Path) -> None:
    """Delete what a run left, so that it begins again."""
    shutil.rmtree(folder, ignore_errors=True)


def planned_steps(config: TrainConfig, batches_per_epoch: int) -> int:
    """Optimiser steps of a run."""
    run = config.run
    return run.steps or -(-run.epochs * batches_per_epoch // run.accumulation)


def _live_lora(name: str, modules: Sequence[Trained], model: Trainable) -> Lora:
    tensors = exported_tensors(named_modules(modules, model.table), dtype="fp32")
    return lora_from_tensors(name, {key: tensor.clone() for key, tensor in tensors.items()})


def _export(
    modules: Sequence[Trained],
    trainer: Trainer,
    path: Path,
    output: Output,
    facts: Mapping[str, str],
) -> tuple[str, ...]:
    """Write the file; a finished run gets its receipt last of all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = trainer.model.table
    found = export(modules, table, path, output.form, output.dtype, facts, overwrite=True)
    if trainer.is_complete:
        told = {
            "key": trainer.key,
            "output": asdict(output),
            "file": path.name,
            "sha256": found.sha256,
            "steps": trainer.step,
            **asdict(trainer.history),
            "warnings": list(found.warnings),
        }
        draft = path.with_name(f"{_RECEIPT}.new")
        draft.write_text(json.dumps(told, indent=1), encoding="utf-8")
        draft.replace(path.with_name(_RECEIPT))
    return found.warnings


def _finished(folder: Path, key: str, output: Output) -> Outcome | None:
    """What a run left that came to its end; None where something of it was lost or changed."""
    try:
        told = json.loads((folder / _RECEIPT).read_text(encoding="utf-8"))
        path, lora = folder / told["file"], load_lora(folder / told["file"])
        is_same = told["key"] == key and told["output"] == asdict(output)
        if not is_same or lora.sha256 != told["sha256"]:
            return None
        history = History(**{name: [tuple(pair) for pair in told[name]] for name in _MEASURED})
        return Outcome(path, lora, history, told["steps"], 0, True, tuple(told["warnings"]))
    except (OSError, ValueError, KeyError):
        return None  # the last state makes it again
