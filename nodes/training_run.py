"""What Train LoRA does between its inputs and its outputs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..hosts.protocol import Host, Live
from ..lora_core.lora import load_lora
from ..training.config import Output, TrainConfig
from ..training.cost import duration
from ..training.dataset.data import Dataset
from ..training.run import forget, train
from ..training.task import TrainingTask
from ..training.watcher import Progress
from .charts import line_chart
from .lora_model import LoraModel
from .report_form import Report
from .training_report import run_report

_SMOOTHING = 0.95  # of the time of a step


@dataclass(frozen=True)
class NodeRun:
    """The outputs of the node, and its report."""

    lora_model: LoraModel
    loss_map: dict[str, list[float]]
    loss_plot: Tensor
    samples: Tensor
    path: Path
    report: Report


def run_node(
    host: Host,
    model: Any,
    clip: Any,
    vae: Any,
    dataset: Dataset,
    settings: TrainConfig,
    seed: int,
    retrain: bool,
    name: str,
    node_id: str,
) -> NodeRun:
    """Train in the host's folders; see ``training.run.train``."""
    config = replace(settings, run=replace(settings.run, seed=seed))
    output = Output(name=name)
    host.require_lora_name(name)  # before hours of training
    folders = host.training_folders()
    with torch.inference_mode(False), torch.enable_grad():
        trainable = host.trainable(model, clip, vae)
        task = TrainingTask(trainable, dataset, config, output, folders.runs, folders.cache)
        if retrain:
            forget(task)
        with host.live(node_id) as live:
            watcher = NodeWatcher(live)
            outcome = train(task, watcher)
    stopped = (name, seed, task.key)
    if outcome.is_complete:
        host.stopped_runs.discard(stopped)
    else:
        host.stopped_runs.add(stopped)
    path = host.keep_lora(name, outcome.path, None if outcome.is_complete else outcome.steps)
    losses = [loss for _, loss in outcome.history.losses]
    curves = {"loss": outcome.history.losses, "validation": outcome.history.validation}
    return NodeRun(
        LoraModel(load_lora(path)),  # the run's own may be made anew
        {"loss": losses},
        line_chart(name, curves, "optimizer step", "loss"),
        watcher.samples(),
        path,
        run_report(outcome, path, retrain, watcher.notes),
    )


class NodeWatcher:
    """Shows a run on the node's live panel."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._seconds = 0.0
        self._pictures: dict[str, Tensor] = {}
        self.notes: list[str] = []

    def wish(self) -> Literal["keep"] | None:
        """See ``Watcher.wish``."""
        return self._live.stop_requested()

    def stepped(self, progress: Progress) -> None:
        """See ``Watcher.stepped``."""
        share = _SMOOTHING if self._seconds else 0.0
        self._seconds = share * self._seconds + (1 - share) * progress.seconds
        left = duration(self._seconds * (progress.total - progress.step))
        self._live.point("loss", progress.step, progress.loss)
        self._live.progress(
            progress.step, progress.total, f"loss {progress.loss:.4f} · {left} left"
        )

    def validated(self, step: int, loss: float) -> None:
        """See ``Watcher.validated``."""
        self._live.point("validation", step, loss)

    def pictured(self, step: int, prompt: str, picture: Tensor) -> None:
        """See ``Watcher.pictured``."""
        self._pictures[prompt] = picture
        self._live.picture(picture, f"step {step}: {prompt}")

    def noted(self, text: str) -> None:
        """See ``Watcher.noted``."""
        self.notes.append(text)

    def samples(self) -> Tensor:
        """The last picture of each prompt, ``(n, height, width, 3)``; a black one without any."""
        if not self._pictures:
            return torch.zeros(1, 64, 64, 3)
        return torch.stack([picture.float().cpu() for picture in self._pictures.values()])
