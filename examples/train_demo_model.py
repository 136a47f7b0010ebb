"""Train the small model of `make demo` and its two LoRAs, with the trainer that users have.

    git show f7e2d98:headless/demo_model/weights.safetensors > /tmp/before.safetensors
    python examples/train_demo_model.py --work /tmp/demo-model --start /tmp/before.safetensors

makes the committed files. Pictures are drawn, nothing is downloaded. UNet and text encoder are
trained by the trainer's loop (demo_base.toml), the LoRAs by what `lora-workbench train` runs
(demo_neon.toml, demo_mosaic.toml). The weights that UNet and text encoder go on from were trained
by an earlier version of this script with a loop of its own; without --start they begin from
nothing, for which the steps and the rate of demo_base.toml are too small. Of the autoencoder, which
diffusion does not train, the encoder is that of the package, and the decoder is trained from
nothing by a loop of its own. The same machine and libraries give the same bits; a run that was
stopped goes on, and finished stages stay in the work folder.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_base import train_base, write_start
from demo_dataset import write_pictures
from demo_decoder import train_decoder
from demo_model_parts import trained_ids
from diffusers import AutoencoderKL
from instant_clip_tokenizer import Tokenizer
from torch import Tensor

from lora_workbench.headless import demo_model
from lora_workbench.headless.demo_model.pictures import STYLES, Scene, random_scenes
from lora_workbench.headless.demo_model.write import write_whole
from lora_workbench.headless.train_run import checked_config, checked_run, trained
from lora_workbench.hosts.embedded.checkpoints import load_checkpoint
from lora_workbench.training.watcher import Progress

HERE = Path(__file__).parent
COMMITTED, WEIGHTS = Path(demo_model.__file__).parent, "weights.safetensors"
SEED, SCENE_SEED = 0, 11


@dataclass(frozen=True)
class Amounts:
    """How much is done beside what the configurations say.

    Attributes:
        decoder_steps: Of its optimiser.
        decoder_scenes: Are drawn for it.
        pictures: For UNet and text encoder.
        styled: For each LoRA.
    """

    decoder_steps: int = 3200
    decoder_scenes: int = 896
    pictures: int = 3584
    styled: int = 144


class Printed:
    """Says how a run goes, every hundredth step."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def wish(self) -> None:
        """Goes on."""

    def stepped(self, progress: Progress) -> None:
        """Say it."""
        if progress.step % 100 == 0:
            self.noted(f"{progress.step} of {progress.total}: loss {progress.loss:.4f}")

    def validated(self, step: int, loss: float) -> None:
        """Say it."""
        self.noted(f"{step}: validation loss {loss:.4f}")

    def pictured(self, step: int, prompt: str, picture: Tensor) -> None:
        """Nothing: the base has no previews."""

    def noted(self, text: str) -> None:
        """Say it, with the seconds since the beginning."""
        print(f"{time.perf_counter() - self._started:.0f} s, {text}", flush=True)  # noqa: T201


def build(
    work: Path, output: Path, recipes: Path, amounts: Amounts, start: Path | None = None
) -> None:
    """Run all stages.

    Args:
        work: Pictures, states and finished stages.
        output: Gets ``weights.safetensors``, ``neon.safetensors`` and ``mosaic.safetensors``.
        recipes: Folder of the three configurations.
        amounts: The rest.
        start: Weights that UNet and text encoder go on from; None begins with random ones.
    """
    watcher = Printed()
    (work / "checkpoints").mkdir(parents=True, exist_ok=True)
    scenes = random_scenes(amounts.pictures, SCENE_SEED)
    for number, style in enumerate(STYLES):
        few = scenes if style == "plain" else scenes[: amounts.styled]
        write_pictures(work / "pictures" / style, few, style, SEED + number)
    for recipe in recipes.glob("demo_*.toml"):
        shutil.copy(recipe, work)
    watcher.noted("pictures are drawn")
    vae = _autoencoder(work, scenes[: amounts.decoder_scenes], amounts.decoder_steps)
    watcher.noted("the decoder is trained")
    ids, untrained = trained_ids(Tokenizer(), scenes), work / "checkpoints" / "start.safetensors"
    if start is None:
        start = work / "checkpoints" / "start-weights.safetensors"
        write_start(start, ids, vae, SEED)
    write_whole(start, untrained)
    prepared = checked_run(checked_config(work / "demo_base.toml"), work / "runs")
    train_base(prepared, ids, vae, watcher, output / WEIGHTS)
    watcher.noted("UNet and text encoder are trained")
    write_whole(output / WEIGHTS, work / "checkpoints" / "demo.safetensors")
    for style in STYLES[1:]:
        prepared = checked_run(checked_config(work / f"demo_{style}.toml"), work / "runs")
        outcome = trained(prepared, retrain=False)
        shutil.copyfile(outcome.path, output / f"{style}.safetensors")
        watcher.noted(f"the LoRA {style} is trained")


def _autoencoder(work: Path, scenes: Sequence[Scene], steps: int) -> AutoencoderKL:
    """The package's encoder with a decoder that is trained, or was."""
    whole, kept = work / "checkpoints" / "encoder.safetensors", work / "decoder.pt"
    write_whole(COMMITTED / WEIGHTS, whole)
    vae = load_checkpoint(whole).vae.vae
    if not kept.exists():
        train_decoder(vae, scenes, steps, SEED)
        draft = kept.with_suffix(".new")
        torch.save(vae.state_dict(), draft)
        draft.replace(kept)
    vae.load_state_dict(torch.load(kept))
    return vae


def main() -> None:
    """Read the options and run all stages on one thread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for stages and states")
    parser.add_argument("--output", type=Path, default=COMMITTED)
    parser.add_argument("--start", type=Path, help="weights to go on from; default random ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    build(options.work, options.output, HERE, Amounts(), options.start)


if __name__ == "__main__":
    main()
