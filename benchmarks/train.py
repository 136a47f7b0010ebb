"""What does one step of training cost in ComfyUI, by our trainer and by core's TrainLoraNode?

The slim SD1.5 checkpoint of tests/comfy, every layer of its UNet adapted at the same rank, float32,
batch 1, no gradient checkpointing, one process. Core adapts norms and biases too; in its default
mode it computes with merged weights, in bypass mode with the factors beside them, as ours does.
A repetition trains each side for some steps in turn; a step's time is that between two optimiser
steps, so loading is not counted. Kept bytes are the storages that autograd keeps for one backward
pass, without the model's own weights and the factors. Times are min/median/max in milliseconds.
"""

import argparse
import importlib
import re
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from lora_workbench.training.config import (
    AdapterConfig,
    CheckpointConfig,
    Output,
    RunConfig,
    TrainConfig,
)
from lora_workbench.training.cost import measured
from lora_workbench.training.dataset.scan import scan
from lora_workbench.training.dataset.settings import DatasetSettings
from lora_workbench.training.watcher import Silent

from harness import machine

TESTS = Path(__file__).resolve().parents[1] / "tests" / "comfy"
PICTURES = 2


class Steps:
    """Seconds between optimiser steps, whoever's optimiser it is."""

    def __init__(self):
        self.seconds, self._last = [], None
        hooks = importlib.import_module("torch.optim.optimizer")
        hooks.register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, *_):
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now

    def of(self, run):
        """Seconds of each step of a run but the first."""
        self.seconds, self._last = [], None
        run()
        return self.seconds


def start_comfyui(base_directory, *options):
    """Make ComfyUI importable, on the CPU; gives the loaded slim checkpoint."""
    sys.path.insert(0, str(TESTS))
    import comfy_source
    import torchvision_stub

    torchvision_stub.install()
    sys.path.insert(0, str(comfy_source.comfyui_path()))
    arguments = ["main.py", "--cpu", "--base-directory", str(base_directory), *options]
    (Path(base_directory) / "custom_nodes").mkdir()
    with mock.patch.object(sys, "argv", arguments):
        import comfy.options

        comfy.options.enable_args_parsing()
        import execution  # noqa: F401  reads sys.argv, and imports nodes
    import checkpoints
    import comfy.sd

    path = checkpoints.cached_checkpoint(comfy_source.cache_dir(), checkpoints.SLIM)
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(path))[:3]


def ours(loaded, dataset, folder, rank, steps):
    """Train by our trainer; gives its notes."""
    from lora_workbench.hosts.comfy.host import ComfyHost
    from lora_workbench.hosts.comfy.trainable import ComfyTrainable
    from lora_workbench.training.run import forget, train
    from lora_workbench.training.task import TrainingTask

    config = TrainConfig(
        adapter=AdapterConfig(rank=rank, targets=("unet",)),
        run=RunConfig(steps=steps),
        checkpoint=CheckpointConfig(every=0),
    )
    watcher, runs, cache = Silent(), Path(folder, "runs"), Path(folder, "cache")
    with torch.inference_mode(False), torch.enable_grad():
        model = ComfyTrainable(ComfyHost(), *loaded)
        task = TrainingTask(model, dataset, config, Output(), runs, cache)
        forget(task)
        train(task, watcher)
    return watcher.notes


def core(loaded, latents, positive, rank, steps, bypass):
    """Train by core's node; gives the bytes kept in its loop."""
    node = importlib.import_module("comfy_extras.nodes_train")
    loop, kept = node._run_training_loop, []

    def watched(guider, sampler, *others):
        groups = sampler.optimizer.param_groups
        weights = [*guider.model_patcher.model.parameters()]
        weights += [parameter for group in groups for parameter in group["params"]]
        if steps == 1:
            kept.append(measured(lambda: loop(guider, sampler, *others), weights).kept_bytes)
        else:
            loop(guider, sampler, *others)

    options = {
        "batch_size": 1,
        "steps": steps,
        "grad_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "rank": rank,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": False,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": bypass,
    }
    listed = {name: [value] for name, value in options.items()}
    with mock.patch.object(node, "_run_training_loop", watched), torch.inference_mode():
        node.TrainLoraNode.execute(model=[loaded[0]], latents=latents, positive=positive, **listed)
    return kept


def inputs(loaded, folder, side):
    """The same pictures for both: our dataset, and core's latents and conditioning."""
    pictures = Path(folder, f"pictures-{side}")
    pictures.mkdir()
    latents, positive = [], []
    _, clip, vae = loaded
    for number in range(PICTURES):
        numbers = np.random.default_rng(number)
        pixels = numbers.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"noise {number}")
        with torch.inference_mode():
            tensor = torch.from_numpy(pixels).float()[None] / 255
            latents.append({"samples": vae.encode(tensor)})
            positive.append(clip.encode_from_tokens_scheduled(clip.tokenize(f"noise {number}")))
    dataset = scan(DatasetSettings(str(pictures), resolution=side, bucket_step=8))
    return dataset, latents, positive


def report(side, rank, seconds, kept):
    """Print one block of the table."""
    best = {name: min(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        low, middle, high = (1e3 * pick(values) for pick in (min, statistics.median, max))
        print(
            f"{side:4} px rank {rank:3}  {name:13}{low:6.0f}/{middle:.0f}/{high:.0f} ms"
            f"   {best[name] / best['ours']:5.2f} x ours   kept {kept[name] / 1e6:7.1f} MB"
        )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--pytorch-attention",
        action="store_true",
        help="ComfyUI's own attention is slow on the CPU; this is the one it takes on NVIDIA cards",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        attention = ["--use-pytorch-cross-attention"] if options.pytorch_attention else []
        loaded = start_comfyui(folder, *attention)
        steps = Steps()
        for side in options.sides:
            run_case(loaded, folder, side, steps, options)


def run_case(loaded, folder, side, steps, options):
    """Measure all sides at one size of pictures, and report."""
    dataset, latents, positive = inputs(loaded, folder, side)

    def ours_trains(count):
        return ours(loaded, dataset, folder, options.rank, count)

    def core_trains(count, bypass):
        return core(loaded, latents, positive, options.rank, count, bypass)

    sides = {
        "ours": ours_trains,
        "core default": partial(core_trains, bypass=False),
        "core bypass": partial(core_trains, bypass=True),
    }
    (note,) = ours_trains(1)
    amount = re.search(r"kept activations: ([\d.]+) (MB|GB)", note)
    kept = {"ours": float(amount[1]) * (1e6 if amount[2] == "MB" else 1e9)}
    for name in ("core default", "core bypass"):
        (kept[name],) = sides[name](1)
    seconds = {name: [] for name in sides}
    for _ in range(options.repetitions):
        for name, trains in sides.items():
            seconds[name] += steps.of(partial(trains, options.steps))
    report(side, options.rank, seconds, kept)


if __name__ == "__main__":
    main()
