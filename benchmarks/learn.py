"""Does a LoRA learn, and do LoRA+ and rsLoRA act as their papers say? Three seeds each.

A LoRA on the demo's base is trained on captioned pictures in a style that the base does not know;
what counts is the loss on pictures that it never saw. Bars, of every seed: a LoRA takes at least
a tenth of the base's loss away; LoRA+ at the same rate is lower than LoRA (arXiv:2402.12354); at
rank 32 with a fixed alpha, rsLoRA is lower than LoRA, whose updates shrink with the rank
(arXiv:2312.03732).

``--pictures`` takes a folder of yours with captions; ``--twemoji`` a folder with
``twemoji32_rgb.npz`` (n, 32, 32, 3, uint8) and ``twemoji_captions.json``; else some are drawn.
``--grid`` writes what the base and each seed's LoRA make of captions that were never trained on;
with ``--denoise 0.6`` they begin with the held-out picture under so much of the noise.
"""

import argparse
import json
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lora_workbench.headless.demo_model.pictures import draw_scene, random_scenes
from lora_workbench.headless.demo_model.write import write_demo_checkpoint
from lora_workbench.headless.picture_grid import picture_grid
from lora_workbench.hosts.embedded.applying import applied
from lora_workbench.hosts.embedded.autoencoder import decoded, encoded
from lora_workbench.hosts.embedded.checkpoints import load_checkpoint
from lora_workbench.hosts.embedded.handles import Clip, Model, Vae
from lora_workbench.hosts.embedded.sampling import sample
from lora_workbench.hosts.embedded.text import encode
from lora_workbench.hosts.embedded.trainable import EmbeddedTrainable
from lora_workbench.lora_core.stack import StackItem
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
from lora_workbench.training.run import train
from lora_workbench.training.task import TrainingTask
from lora_workbench.training.watcher import Silent

from harness import machine

SEEDS, STEPS, PICTURES = (0, 1, 2), 120, 64
SHOWN_PICTURES, SAMPLING = 4, {"seed": 0, "steps": 20, "cfg": 4.0}
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
BASE, SHOWN = "base", "LoRA, rank 8"
LOWER = [
    ("LoRA+ (16), a fifth of the rate", "LoRA, rank 8, a fifth of the rate"),
    ("rsLoRA, rank 32, alpha 4", "LoRA, rank 32, alpha 4"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--pictures", type=Path)
    source.add_argument("--twemoji", type=Path)
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--denoise", type=float, default=1.0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # diffusers' remark about the model's dtype
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures = options.pictures or folder / "pictures"
        if options.twemoji:
            enlarged(options.twemoji, pictures)
        elif not options.pictures:
            drawn(pictures)
        measured = Measured(folder, pictures)
        losses = measured.losses()
        if options.grid:
            measured.grid(options.denoise).save(options.grid)
    print(machine())
    sizes = f"{len(measured.dataset.samples)} pictures, {len(measured.dataset.validation)} held out"
    print(f"{sizes}; {STEPS} steps of 4, {time.perf_counter() - started:.0f} s")
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
        keep(folder, number, draw_scene(scene, "neon"), scene.caption)


def enlarged(source, folder):
    """Some Twemoji of all kinds, four times as large, with their Unicode names as captions."""
    folder.mkdir()
    images = np.load(source / "twemoji32_rgb.npz")["images"]
    names = json.loads((source / "twemoji_captions.json").read_text())
    for number in range(0, len(names), len(names) // PICTURES):
        picture = Image.fromarray(images[number]).resize((128, 128), Image.Resampling.LANCZOS)
        keep(folder, number, picture, f"emoji of {names[number]['name'].lower()}")


def keep(folder, number, picture, caption):
    picture.save(folder / f"{number:04}.png")
    (folder / f"{number:04}.txt").write_text(caption)


class Measured:
    """The demo's base and one set of pictures."""

    def __init__(self, folder, pictures):
        found = load_checkpoint(write_demo_checkpoint(folder / "base"), torch.float32, "cpu")
        self.parts = Model.of(found.diffusion), Clip.of(found.text)
        self.vae = found.vae
        self.model = EmbeddedTrainable(*self.parts, Vae(self.vae))
        self.dataset = scan(DatasetSettings(str(pictures), resolution=128, validation=0.25))
        self.folder = folder
        self.loras = []  # of the shown run, by seed

    def losses(self):
        """Name of a run to its validation losses, by seed."""
        untrained = (AdapterConfig(rank=1), OptimizerConfig(rate=1e-30)), 1
        runs = {BASE: untrained, **{name: (told, STEPS) for name, told in RUNS.items()}}
        return {
            name: [self.loss_after(name, *told, steps, seed) for seed in SEEDS]
            for name, (told, steps) in runs.items()
        }

    def loss_after(self, name, adapter, optimizer, steps, seed):
        """The held-out loss at the end of one run."""
        config = TrainConfig(
            adapter,
            optimizer,
            run=RunConfig(steps=steps, batch_size=4, seed=seed),
            validation=ValidationConfig(every=steps),
        )
        output = Output(dtype="fp32")  # what hardly moved would round to nothing
        runs, cache = self.folder / "runs", self.folder / "cache"
        task = TrainingTask(self.model, self.dataset, config, output, runs, cache)
        done = train(task, Silent())
        if name == SHOWN:
            self.loras.append(done.lora)
        return done.history.validation[-1][1]

    def grid(self, denoise):
        """A row for each caption: the held-out picture, the base's and those of each seed."""
        shown = self.dataset.validation[:SHOWN_PICTURES]
        stacks = [[], *([StackItem(lora, 1.0, 1.0)] for lora in self.loras)]
        rows = [
            [Image.open(item.path), *(self.picture(item, stack, denoise) for stack in stacks)]
            for item in shown
        ]
        heads = ["held out", BASE, *(f"LoRA, seed {seed}" for seed in SEEDS)]
        return picture_grid(rows, heads, [item.caption for item in shown])

    def picture(self, item, stack, denoise):
        """What the base with a stack draws for a caption, from its picture under noise."""
        found = applied(*self.parts, self.model.table, stack, "report", "auto")
        text = found.clip.loaded()
        prompts = [encode(text, said, found.clip.skip) for said in (item.caption, "")]
        with Image.open(item.path) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).float()[None] / 255
        latent = encoded(self.vae, pixels)
        if denoise == 1:
            latent = torch.zeros_like(latent)  # noise does not cover a picture whole
        latent = sample(
            found.model.loaded(), *prompts, latent, sampler="euler", scheduler="normal",
            denoise=denoise, **SAMPLING,
        )  # fmt: skip
        drawn = decoded(self.vae, latent)[0].clamp(0, 1)
        return Image.fromarray((drawn * 255).round().byte().numpy())


if __name__ == "__main__":
    main()
