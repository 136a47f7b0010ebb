"""Small models, pictures and runs."""

from dataclasses import dataclass, replace

import torch

from lora_workbench.hosts.embedded.handles import Clip, Model, Vae
from lora_workbench.hosts.embedded.parts import DiffusionPart, TextPart, VaePart
from lora_workbench.hosts.embedded.trainable import EmbeddedTrainable
from lora_workbench.training.config import AdapterConfig, OptimizerConfig, RunConfig, TrainConfig
from lora_workbench.training.dropout import Draws
from lora_workbench.training.feed import Batch
from lora_workbench.training.injection import injected
from lora_workbench.training.loop import Trainer
from lora_workbench.training.targets import choose_targets
from lora_workbench.training.trainable import PictureSize
from lora_workbench.training.watcher import Silent

from ..headless.tiny_checkpoints import kl_vae
from ..headless.tiny_pipeline import tiny_text_encoder, tiny_unet

SCALE = 0.18215
CAPTIONS = ("a red circle", "a blue square on a hill", "", "green")


def tiny_trainable(dtype=torch.float32, prediction="epsilon"):
    """SD1.5's structure in miniature."""
    unet, text = tiny_unet().to(dtype), tiny_text_encoder().to(dtype)
    model = Model.of(DiffusionPart(unet, "sd15", prediction, SCALE, {}))
    clip = Clip.of(TextPart({"l": text}, "sd15", {}))
    return EmbeddedTrainable(model, clip, Vae(VaePart(kl_vae(SCALE), SCALE)))


def short_run(adapter=None, optimizer=None, steps=5, **run):
    """A configuration for seconds."""
    return TrainConfig(
        adapter=adapter or AdapterConfig(rank=4),
        optimizer=optimizer or OptimizerConfig(rate=1e-3),
        run=RunConfig(steps=steps, **run),
    )


@dataclass(frozen=True)
class Pick:
    """Which picture."""

    index: int


class ListFeed:
    """Random latents in order, over and over."""

    size = (64, 64)

    def __init__(self, count=6, batch_size=2, seed=0):
        numbers = torch.Generator().manual_seed(seed)
        self.latents = [torch.randn(4, 8, 8, generator=numbers) for _ in range(count)]
        self._size = batch_size
        self.batches_per_epoch = -(-count // batch_size)

    def picks(self, number):
        start = number % self.batches_per_epoch * self._size
        return [Pick(i) for i in range(start, min(start + self._size, len(self.latents)))]

    def load(self, picks, keys):
        return Batch(
            torch.stack([self.latents[pick.index] for pick in picks]),
            [CAPTIONS[pick.index % len(CAPTIONS)] for pick in picks],
            [PictureSize((64, 64), (0, 0), (64, 64)) for _ in picks],
            torch.ones(len(picks)),
        )

    def validation(self):
        return [replace(self.load([Pick(0), Pick(1)], [(0, 0), (0, 1)]))]


class Quiet(Silent):
    """Listens; may stop after some steps, or raise."""

    def __init__(self, stop_after=None, raise_after=None):
        super().__init__()
        self.progress, self.measured, self.pictures = [], [], []
        self._stop_after, self._raise_after = stop_after, raise_after

    def wish(self):
        done = len(self.progress)
        return "keep" if self._stop_after is not None and done >= self._stop_after else None

    def stepped(self, progress):
        self.progress.append(progress)
        if self._raise_after is not None and len(self.progress) >= self._raise_after:
            raise KeyboardInterrupt

    def validated(self, step, loss):
        self.measured.append((step, loss))

    def pictured(self, step, prompt, picture):
        self.pictures.append((step, prompt, picture))


def run(config, folder, model=None, feed=None, watcher=None, key="k"):
    """Train; returns the factors' values by name, and the losses."""
    model, feed = model or tiny_trainable(), feed or ListFeed()
    watcher = watcher or Quiet()
    seed = config.run.seed
    draws = Draws(seed)
    targets = choose_targets(model.parts, model.weights, config.adapter)
    with model.loaded(), injected(model.parts, targets, config.adapter, seed, draws) as factors:
        steps = config.run.steps
        if not steps:
            steps = -(-config.run.epochs * feed.batches_per_epoch // config.run.accumulation)
        trainer = Trainer(
            model, factors, feed, config, steps, folder, key, watcher, draws, lambda: None
        )
        trainer.resume()
        try:
            trainer.run()
        finally:
            values = values_of(factors)
    return values, [loss for _, loss in trainer.history.losses]


def values_of(factors):
    """Copies of all factors, by weight and role."""
    return {
        f"{each.trained.target.canonical}.{role}": parameter.detach().clone()
        for each in factors
        for role, parameter in each.parameters.items()
    }
