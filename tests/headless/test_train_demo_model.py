"""The script that makes the demo's model, at a few steps; and that its files are of the recipes."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from lora_workbench.headless.demo_model.structure import TOKEN_IDS, TOKEN_ROWS
from lora_workbench.headless.demo_model.write import write_whole
from lora_workbench.hosts.embedded.checkpoints import load_checkpoint
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.training.config_file import read_toml

ROOT = Path(__file__).parents[2]
EXAMPLES, COMMITTED = ROOT / "examples", ROOT / "headless" / "demo_model"
FILES = ("weights.safetensors", "neon.safetensors", "mosaic.safetensors")
AUTOENCODER = "first_stage_model."
DECODER = (f"{AUTOENCODER}decoder.", f"{AUTOENCODER}post_quant_conv.")
SHORT = {"steps": "2", "every": "1", "warmup_steps": "1", "batch_size": "2"}


@pytest.fixture(scope="module")
def script():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("train_demo_model")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """The committed configurations, short."""
    folder = tmp_path_factory.mktemp("recipes")
    for path in EXAMPLES.glob("demo_*.toml"):
        text = path.read_text()
        for name, value in SHORT.items():
            text = re.sub(rf"(?m)^{name} = \S+$", f"{name} = {value}", text)
        (folder / path.name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def built(script, recipes, tmp_path_factory):
    """Gives the files' folder and the work folder of a short run."""

    def build(start=None):
        work, output = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("output")
        few = script.Amounts(decoder_steps=2, decoder_scenes=2, pictures=4, styled=2)
        script.build(work, output, recipes, few, start)
        return output, work

    return build


@pytest.fixture(scope="module")
def first(built):
    return built()


def test_the_script_gives_the_same_bits_in_another_folder(built, first):
    again, _ = built()
    for name in FILES:
        assert (again / name).read_bytes() == (first[0] / name).read_bytes(), name


def test_the_files_are_those_of_a_model_and_its_loras(first, tmp_path):
    output, _ = first
    write_whole(output / FILES[0], tmp_path / "whole.safetensors")
    parts = load_checkpoint(tmp_path / "whole.safetensors")
    assert (parts.diffusion.family, parts.vae.latent_scale) == ("sd15", 0.18215)
    committed = open_safetensors(COMMITTED / FILES[0]).tensors
    made = open_safetensors(output / FILES[0]).tensors
    words = {TOKEN_IDS, TOKEN_ROWS}  # of few captions
    assert {k: v.shape for k, v in made.items() if k not in words} == {
        k: v.shape for k, v in committed.items() if k not in words
    }
    for name in FILES[1:]:
        own, other = load_lora(output / name), load_lora(COMMITTED / name)
        assert set(own.modules) == set(other.modules)


def test_every_weight_of_unet_and_text_encoder_moves_and_the_autoencoder_stays(first):
    output, work = first
    before = open_safetensors(work / "checkpoints" / "start-weights.safetensors")
    after = open_safetensors(output / FILES[0])
    assert set(before.tensors) == set(after.tensors)
    kept = {key for key in after.tensors if torch.equal(before.read(key), after.read(key))}
    assert kept == {TOKEN_IDS, *(key for key in after.tensors if key.startswith(AUTOENCODER))}


def test_the_encoder_is_that_of_the_package_and_the_decoder_is_new(first):
    before, after = (open_safetensors(f / FILES[0]) for f in (COMMITTED, first[0]))
    vae = {key for key in after.tensors if key.startswith(AUTOENCODER)}
    kept = {key for key in vae if torch.equal(before.read(key), after.read(key))}
    assert kept == {key for key in vae if not key.startswith(DECODER)}


def test_it_goes_on_from_given_weights(built, first):
    """Two steps of Adam move a weight by at most about twice the rate."""
    output, _ = built(first[0] / FILES[0])
    before, after = (open_safetensors(f / FILES[0]) for f in (first[0], output))
    for key in set(after.tensors) - {TOKEN_IDS}:
        moved = (after.read(key).float() - before.read(key).float()).abs().max()
        assert moved < 0.01 or key.startswith(DECODER), key


@pytest.mark.parametrize("name", ["neon", "mosaic"])
def test_the_committed_loras_are_of_the_committed_recipes(name):
    """Every value of the configuration is in the header that the trainer wrote."""
    told = json.loads(
        open_safetensors(COMMITTED / f"{name}.safetensors").metadata["lora_workbench_config"]
    )
    recipe = read_toml(EXAMPLES / f"demo_{name}.toml")
    assert recipe.pop("output") == {"name": name}
    assert recipe.pop("model") == {"checkpoint": "checkpoints/demo.safetensors", "device": "cpu"}
    del recipe["dataset"]["folder"]
    found = {"dataset": told["dataset"], **told["training"]}
    for table, values in recipe.items():
        assert values == {key: found[table][key] for key in values}
