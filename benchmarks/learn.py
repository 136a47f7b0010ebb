"""Does a LoRA learn, and do LoRA+ and rsLoRA act as their papers say? Three seeds each.

A LoRA on the demo's base is trained on captioned pictures in a style that the base does not know;
what counts is the loss on pictures that it never saw. Bars, of every seed: a LoRA takes at least
a tenth of the base's loss away; LoRA+ at the same rate is lower than LoRA (arXiv:2402.12354); at
rank 32 with a fixed alpha, rsLoRA is lower than LoRA, whose updates shrink with the rank
(arXiv:2312.03732). ``learn.py FOLDER`` takes pictures with captions of your own.
"""

import logging
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from lora_workbench.headless.demo_model.pictures import draw_scene, random_scenes
from lora_workbench.headless.demo_model.write import write_demo_checkpoint
from lora_workbench.hosts.embedded.checkpoints import load_checkpoint
from lora_workbench.hosts.embedded.handles import Clip, Model, Vae
from lora_workbench.hosts.embedded.trainable import EmbeddedTrainable
from lora_workbench.training.config import (
    AdapterConfig,
    OptimizerConfig,
    Output,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from lora_workbench.training.dataset.scan import scan
from lora_workbench.training.dataset.settings import DatasetSettings
from lora_workbench.training.run import run_key, train

from harness import machine

SEEDS, STEPS, PICTURES = (0, 1, 2), 120, 64
LEAST = 0.10  # share of the base's loss
RATE, ALPHA = 1e-3, 4.0

_PLAIN = OptimizerConfig(rate=RATE)
RUNS = {
    "LoRA, rank 8": (AdapterConfig(rank=8), _PLAIN),
    "LoRA, rank 8, a fifth of the rate": (
        AdapterConfig(rank=8),
        replace(_PLAIN, rate=RATE / 5),
    ),
    "LoRA+ (16), a fifth of the rate": (
        AdapterConfig(rank=8),
        replace(_PLAIN, rate=RATE / 5, lora_plus=16),
    ),
    "LoRA, rank 32, alpha 4": (AdapterConfig(rank=32, alpha=ALPHA), _PLAIN),
    "rsLoRA, rank 32, alpha 4": (AdapterConfig(rank=32, alpha=ALPHA, rslora=True), _PLAIN),
    "LoHa, rank 4": (AdapterConfig("loha", 4), _PLAIN),
    "LoKr, factor 4, full": (AdapterConfig("lokr", factor=4, full_matrix=True), _PLAIN),
    "OFT, rank 8": (AdapterConfig("oft", 8), _PLAIN),
}
BASE = "base"
LOWER = [
    ("LoRA+ (16), a fifth of the rate", "LoRA, rank 8, a fifth of the rate"),
    ("rsLoRA, rank 32, alpha 4", "LoRA, rank 32, alpha 4"),
]


class Silent:
    """Listens to nothing."""

    def wish(self):
        """Never stop."""

    def stepped(self, progress):
        """Nothing."""

    def validated(self, step, loss):
        """Nothing."""

    def noted(self, text):
        """Nothing."""


def main():
    logging.disable(logging.WARNING)  # diffusers' remark about the model's dtype
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures = Path(sys.argv[1]) if len(sys.argv) > 1 else drawn(folder / "pictures")
        losses = measured(folder, pictures)
    print(machine())
    print(f"{STEPS} steps of 4 pictures at {pictures.name}, {time.perf_counter() - started:.0f} s")
    print(f"  {'validation loss, seed':36}" + "".join(f"{seed:>9}" for seed in SEEDS))
    for name, values in losses.items():
        print(f"  {name:36}" + "".join(f"{value:9.4f}" for value in values))
    for text, is_met in bars(losses):
        print(f"  {text}: {'met' if is_met else 'MISSED'}")


def bars(losses):
    """Each bar in words, and whether every seed meets it."""
    pairs = zip(losses[BASE], losses["LoRA, rank 8"], strict=True)
    shares = [1 - after / before for before, after in pairs]
    yield (
        f"LoRA takes {min(shares):.1%} to {max(shares):.1%} of the loss away, bar {LEAST:.0%}",
        min(shares) >= LEAST,
    )
    for low, high in LOWER:
        pairs = zip(losses[low], losses[high], strict=True)
        shares = [1 - left / right for left, right in pairs]
        text = f"{low} against {high}: {min(shares):.1%} to {max(shares):.1%} lower"
        yield text, min(shares) > 0


def drawn(folder):
    """Pictures in the demo's neon style, with captions."""
    folder.mkdir()
    for number, scene in enumerate(random_scenes(PICTURES, 7)):
        draw_scene(scene, "neon").save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(scene.caption)
    return folder


def measured(folder, pictures):
    """Name of a run to its validation losses, by seed."""
    found = load_checkpoint(write_demo_checkpoint(folder / "base"), torch.float32, "cpu")
    model = EmbeddedTrainable(Model.of(found.diffusion), Clip.of(found.text), Vae(found.vae))
    settings = DatasetSettings(str(pictures), resolution=128, validation=0.25)
    dataset = scan(settings)
    untrained = (AdapterConfig(rank=1), OptimizerConfig(rate=1e-30)), 1
    runs = {BASE: untrained, **{name: (told, STEPS) for name, told in RUNS.items()}}
    return {
        name: [loss_after(model, dataset, *told, steps, seed, folder) for seed in SEEDS]
        for name, (told, steps) in runs.items()
    }


def loss_after(model, dataset, adapter, optimizer, steps, seed, folder):
    config = TrainConfig(
        adapter,
        optimizer,
        run=RunConfig(steps=steps, batch_size=4, seed=seed),
        validation=ValidationConfig(every=steps),
    )
    output = Output(dtype="fp32")  # what hardly moved would round to nothing
    key = run_key(model, dataset, config)
    done = train(model, dataset, config, output, folder / key[:16], folder / "cache", Silent(), key)
    return done.history.validation[-1][1]


if __name__ == "__main__":
    main()
