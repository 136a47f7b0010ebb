"""The demo's training: a LoRA from pictures to a picture."""

import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ..hosts.embedded.trainable import EmbeddedTrainable
from ..lora_core.lora import Lora, load_lora
from ..training.config import PreviewConfig
from .demo_model.pictures import SIZE, draw_scene, random_scenes
from .demo_model.style import style_distance
from .demo_model.write import write_demo_checkpoint
from .picture_grid import picture_grid
from .train_run import checked_config, checked_run, trained

STYLE = "neon"
PROMPTS = (
    "a red circle on a blue background",
    "a yellow star on a purple background",
    "a green house on an orange background",
    "a pink moon on a blue background",
)
_PICTURES, _SEED = 48, 7
_SAMPLING = PreviewConfig(steps=16, cfg=4.0)
_CONFIG = f"""\
[model]
checkpoint = "base/checkpoints/demo.safetensors"
device = "cpu"
[dataset]
folder = "pictures"
resolution = {SIZE}
[optimizer]
rate = 1.5e-3
schedule = "cosine"
warmup_steps = 10
[run]
steps = 150
batch_size = 4
[output]
name = "{STYLE}"
"""


def show_training(grid: Path, beside: Path | None = None) -> bool:
    """Train a LoRA on drawn pictures, read its file, and draw with and without it.

    Args:
        grid: The picture to write.
        beside: Where to make the temporary folder; None is the system's place.

    Returns:
        Whether the pictures with the LoRA are nearer to the style than those without.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lora-workbench-demo-", dir=beside) as scratch:
        folder = Path(scratch)
        write_demo_checkpoint(folder / "base")
        _draw(folder / "pictures")
        (folder / "demo.toml").write_text(_CONFIG, encoding="utf-8")
        print(f"1. {_PICTURES} pictures in the style {STYLE}, with captions, and the demo's base")
        prepared = checked_run(checked_config(folder / "demo.toml"), folder / "runs")
        outcome = trained(prepared, retrain=False)
        print(f"2. A LoRA of {len(outcome.lora.modules)} modules, {outcome.steps} steps, saved")
        lora = load_lora(outcome.path, STYLE)
        columns = {"base": None, f"with the trained\n{STYLE}": lora}
        made = {label: _pictures(prepared.model, each) for label, each in columns.items()}
    rows = [list(row) for row in zip(*made.values(), strict=True)]
    picture_grid(rows, list(made), PROMPTS).save(grid)
    without, with_lora = (style_distance(pictures, STYLE) for pictures in made.values())
    print(f"3. Distance to the style: {without:.2f} without the file, {with_lora:.2f} with it")
    print(f"   the grid: {grid}")
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    return with_lora < without


def _draw(folder: Path) -> None:
    folder.mkdir()
    for number, scene in enumerate(random_scenes(_PICTURES, _SEED)):
        draw_scene(scene, STYLE).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(scene.caption, encoding="utf-8")


def _pictures(model: EmbeddedTrainable, lora: Lora | None) -> list[Image.Image]:
    drawn = [
        model.preview(prompt, _SAMPLING, (SIZE, SIZE), seed, lora)
        for seed, prompt in enumerate(PROMPTS)
    ]
    return [
        Image.fromarray((picture.clamp(0, 1) * 255).round().numpy().astype(np.uint8))
        for picture in drawn
    ]
