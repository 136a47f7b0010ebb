"""A training run on the embedded host, from its file to its outcome."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..hosts.embedded.checkpoints import load_checkpoint
from ..hosts.embedded.handles import Clip, Model, Vae
from ..hosts.embedded.parts import Checkpoint, TextPart
from ..hosts.embedded.sampling import SAMPLERS, SCHEDULERS
from ..hosts.embedded.trainable import EmbeddedTrainable
from ..lora_core.errors import LoraError, UnknownChoiceError
from ..training.checks import check, check_settings
from ..training.config_file import read_config, read_toml
from ..training.dataset.data import Dataset
from ..training.dataset.order import Order
from ..training.dataset.report import report
from ..training.dataset.scan import scan
from ..training.dataset.settings import DatasetSettings
from ..training.file_config import FileConfig, ModelConfig
from ..training.optimizer import check_warmup
from ..training.outcome import Outcome
from ..training.processes import Processes
from ..training.run import forget, look, planned_steps, train
from ..training.task import TrainingTask
from .messages import write_text
from .train_watcher import CommandWatcher, Stop, step_bar, stop_on_interrupt

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_FOLDERS = ("folder", "regularisation", "mask_folder", "validation_folder")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run whose inputs are all there and fit.

    Attributes:
        config: What the file says, with whole paths.
        model: Loaded.
        dataset: Scanned.
        folder: Of runs.
        is_first_process: Whether this process writes.
    """

    config: FileConfig
    model: EmbeddedTrainable
    dataset: Dataset
    folder: Path
    is_first_process: bool

    @property
    def task(self) -> TrainingTask:
        """For the trainer."""
        config, cache = self.config, self.folder / "cache"
        return TrainingTask(
            self.model, self.dataset, config.training, config.output, self.folder, cache
        )


def checked_config(path: Path) -> FileConfig:
    """What a file says, with whole paths.

    Raises:
        LoraError: it is no TOML, says what cannot be or would do nothing, or needs a library that
            is missing.
    """
    config = _with_whole_paths(read_config(FileConfig, read_toml(path)), path.parent)
    if config.preview.sampler not in SAMPLERS:
        raise UnknownChoiceError("sampler", config.preview.sampler, SAMPLERS)
    if config.preview.scheduler not in SCHEDULERS:
        raise UnknownChoiceError("scheduler", config.preview.scheduler, SCHEDULERS)
    check_settings(config.training)
    return config


def checked_run(config: FileConfig, runs: Path) -> Prepared:
    """Load and look at everything that a configuration names.

    Raises:
        LoraError: something is wrong with it.
    """
    with _told_as(_dataset_keys):
        dataset = scan(config.dataset)
    _check_steps(config, dataset)
    with _told_as(lambda facts: {"model.checkpoint": config.model.checkpoint, **facts}):
        model = _model(config.model)
    check(config.training, model.levels, bool(dataset.validation))
    return Prepared(config, model, dataset, runs, Processes().is_first)


def _check_steps(config: FileConfig, dataset: Dataset) -> None:
    """What the number of pictures decides, before the model is loaded."""
    order = Order(dataset, config.run.batch_size, config.run.seed)
    check_warmup(config.optimizer, planned_steps(config.training, order.batches_per_epoch))


def looked_at(prepared: Prepared) -> tuple[str, dict[str, Any]]:
    """What a run would be and cost, as text and as JSON data; nothing is trained.

    Raises:
        LoraError: something of the run cannot be used, or would do nothing.
    """
    dataset = prepared.dataset
    cost = look(prepared.task, CommandWatcher(Stop(), None, prepared.folder))
    facts = {
        "is_checked": True,
        "pictures": len(dataset.samples),
        "validation_pictures": len(dataset.validation),
        "shown_in_an_epoch": dataset.picks_per_epoch,
        "problems": {problem.kind: len(problem.items) for problem in dataset.problems},
        **cost.to_json(),
    }
    return f"{report(dataset, prepared.config.run.batch_size)}\n\n{cost.to_text()}", facts


def trained(prepared: Prepared, retrain: bool) -> Outcome:
    """Train, with progress on standard error."""
    task = prepared.task
    if retrain and prepared.is_first_process:
        forget(task)
    Processes().wait()  # nobody finds what is being forgotten
    if prepared.is_first_process:
        write_text(report(prepared.dataset, prepared.config.run.batch_size))
    with stop_on_interrupt() as stop, step_bar(prepared.is_first_process) as bar:
        watcher = CommandWatcher(stop, bar, task.folder / "previews", prepared.is_first_process)
        outcome = train(task, watcher)
        if outcome.is_complete and not outcome.new_steps and task.config.preview.every:
            watcher.noted(
                "The run was finished before: no previews are drawn. --retrain draws them."
            )
        return outcome


def _with_whole_paths(config: FileConfig, beside: Path) -> FileConfig:
    """Paths are taken from the configuration's folder."""
    named = {name: getattr(config.dataset, name) for name in _FOLDERS}
    whole = {name: str(beside / Path(path).expanduser()) for name, path in named.items() if path}
    if not config.model.checkpoint:
        raise LoraError(
            "No base is given.",
            {"model.checkpoint": "empty"},
            "name a .safetensors file, or a folder in diffusers' form.",
        )
    checkpoint = str(beside / Path(config.model.checkpoint).expanduser())
    return replace(
        config,
        dataset=replace(config.dataset, **whole),
        model=replace(config.model, checkpoint=checkpoint),
    )


@contextmanager
def _told_as(facts: Callable[[dict[str, object]], dict[str, object]]) -> Iterator[None]:
    """Errors from inside with other facts, which name the keys of the configuration."""
    try:
        yield
    except LoraError as error:
        raise LoraError(error.headline, facts(error.facts), error.fix) from error


def _dataset_keys(facts: dict[str, object]) -> dict[str, object]:
    """A fact that is called like an option has the option's key."""
    options = {each.name for each in fields(DatasetSettings)}
    return {f"dataset.{name}" if name in options else name: fact for name, fact in facts.items()}


def _model(config: ModelConfig) -> EmbeddedTrainable:
    device = _device(config.device)
    found = load_checkpoint(Path(config.checkpoint), _DTYPES[config.dtype], device)
    if found.text is None or found.vae is None:
        raise _incomplete(found)
    _refuse_skip(config.clip_skip, found.text)
    clip = replace(Clip.of(found.text), skip=config.clip_skip)
    return EmbeddedTrainable(Model.of(found.diffusion), clip, Vae(found.vae))


def _device(name: str) -> str:
    """The device of that name; ``"auto"``: that of this process among several."""
    if name == "auto":
        return str(Processes().device)
    Processes(on_cpu=name == "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise LoraError(
            f"The device {name!r} cannot be used.",
            {"Cause": str(error).partition("\n")[0]},
            'take model.device = "auto", or install PyTorch for this device.',
        ) from error
    return name


def _refuse_skip(skip: int | None, text: TextPart) -> None:
    layers = min(encoder.config.num_hidden_layers for encoder in text.encoders.values())
    if skip is not None and not -layers <= skip < 0:
        raise LoraError(
            f"There is no layer {skip} of the text encoders.",
            {"model.clip_skip": skip, "Layers": f"-1, the last, to -{layers}"},
            f"take model.clip_skip = {-skip}, if that is what other programs call it."
            if 0 < skip <= layers
            else "take one of these, or leave it out.",
        )


def _incomplete(found: Checkpoint) -> LoraError:
    parts = {"text encoder": found.text, "autoencoder": found.vae}
    missing = [name for name, part in parts.items() if part is None]
    return LoraError(
        "The checkpoint lacks what training needs.",
        {"Missing": " and ".join(missing)},
        "take a whole checkpoint, or a folder in diffusers' form.",
    )
