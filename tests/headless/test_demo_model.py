"""The demo's model: small files, an ordinary checkpoint made of them, pictures and distances."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from instant_clip_tokenizer import Tokenizer

from lora_workbench.headless.demo_model.pictures import (
    COLOURS,
    SHAPES,
    SIZE,
    STYLES,
    TILE,
    Scene,
    draw_scene,
    random_scenes,
)
from lora_workbench.headless.demo_model.structure import TOKEN_TABLE, token_table
from lora_workbench.headless.demo_model.style import style_distance
from lora_workbench.headless.demo_model.write import LORAS, write_demo_checkpoint
from lora_workbench.hosts.embedded.checkpoints import ldm_names, load_checkpoint
from lora_workbench.lora_core.errors import LoraError, UnknownChoiceError
from lora_workbench.lora_core.explain import explain
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.lora_core.models import block_of, table_from_shapes

FOLDER = Path(__file__).parents[2] / "headless" / "demo_model"
LIMIT = 4_000_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_demo_checkpoint(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def table(checkpoint):
    tensors = open_safetensors(checkpoint).tensors
    return table_from_shapes({key: info.shape for key, info in tensors.items()})


def test_the_committed_files_stay_below_four_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= LIMIT


@pytest.mark.skipif(os.name == "nt", reason="modes of files")
def test_the_files_have_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_demo_checkpoint(tmp_path)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.safetensors")}
    assert modes == {0o640}


def test_every_parameter_of_the_loaded_model_has_the_bits_of_the_file(checkpoint):
    file, parts = open_safetensors(checkpoint), load_checkpoint(checkpoint, torch.float16)
    names, seen = ldm_names(parts), set()
    modules = {"unet": parts.diffusion.unet, "vae": parts.vae.vae}
    modules["text_encoder"] = parts.text.encoders["l"]
    for part, module in modules.items():
        for name, parameter in module.named_parameters():
            key = names[f"{part}.{name}"]
            stored = file.read(key).reshape(parameter.shape)
            assert torch.equal(stored.view(torch.int16), parameter.view(torch.int16)), key
            seen.add(key)
    assert seen == set(file.tensors)


def test_the_loaded_model_denoises_reads_and_decodes(checkpoint):
    parts = load_checkpoint(checkpoint)
    tokens = torch.full((1, 77), 49407)
    with torch.no_grad():
        states = parts.text.encoders["l"](tokens).last_hidden_state
        noise = parts.diffusion.unet(torch.zeros(1, 4, 16, 16), 500, states).sample
        picture = parts.vae.vae.decode(noise).sample
    assert (parts.diffusion.family, parts.diffusion.prediction) == ("sd15", "epsilon")
    assert noise.shape == (1, 4, 16, 16)
    assert picture.shape == (1, 3, SIZE, SIZE)
    assert picture.isfinite().all()


def test_writing_twice_gives_equal_bytes_and_no_other_file(tmp_path):
    first = write_demo_checkpoint(tmp_path / "one").read_bytes()
    again = write_demo_checkpoint(tmp_path / "one")
    assert again.read_bytes() == first
    written = {str(path.relative_to(tmp_path / "one")) for path in tmp_path.rglob("*.*")}
    assert written == {"checkpoints/demo.safetensors", *(f"loras/{name}" for name in LORAS)}


def test_the_loras_are_copied_byte_for_byte(checkpoint):
    for name in LORAS:
        copied = checkpoint.parent.parent / "loras" / name
        assert copied.read_bytes() == (FOLDER / name).read_bytes()


def test_the_token_table_is_that_of_the_seed_but_for_the_words_of_captions(checkpoint):
    """The trained rows are looked up with a tokenizer, not read from the file's own list."""
    encode = Tokenizer().encode
    words = " ".join([*SHAPES, *COLOURS, "a an on background"])
    trained = sorted({49406, 49407, *encode(words)})
    stored, seeded = open_safetensors(checkpoint).read(TOKEN_TABLE), token_table()
    differs = (stored != seeded).any(dim=1).nonzero().flatten()
    assert differs.tolist() == trained


def test_the_seeded_table_is_made_of_whole_multiples_that_fp16_holds():
    table = token_table().double() * 1024
    assert table.shape == (49408, 64)
    assert torch.equal(table, table.round())
    assert (table.min(), table.max()) == (-64, 64)


def test_the_model_has_every_block_of_stable_diffusion(table):
    blocks = {block_of(target) for target in table.targets if target.component == "unet"}
    every = {"BASE", "M00", *(f"{side}{n:02}" for side in ("IN", "OUT") for n in range(12))}
    assert blocks == every


@pytest.mark.parametrize("name", LORAS)
def test_every_tensor_of_the_loras_is_used(table, name):
    report = explain(load_lora(FOLDER / name), table, "demo", {})
    assert report.tensors_used == len(report.rows) > 0
    components = {module.target.component for module in report.binding.used()}
    assert components == {"unet", "te1"}


def test_captions_name_shape_and_colours():
    assert Scene("star", "orange", "blue").caption == "an orange star on a blue background"
    assert Scene("moon", "white", "orange").caption == "a white moon on an orange background"


def test_equal_seeds_give_equal_scenes_and_each_combination_comes_as_often():
    count = len(SHAPES) * len(COLOURS) * (len(COLOURS) - 1)
    scenes = random_scenes(2 * count, seed=3)
    assert scenes == random_scenes(2 * count, seed=3)
    assert scenes != random_scenes(2 * count, seed=4)
    shown = [(scene.shape, scene.colour, scene.background) for scene in scenes]
    assert {shown.count(one) for one in set(shown)} == {2}


def test_a_plain_circle_covers_its_area_in_its_colour():
    """pi r^2 of the pixels, and the corners keep the background's hue."""
    picture = np.asarray(draw_scene(Scene("circle", "red", "blue", radius=40)), dtype=float)
    share = (picture[..., 0] > picture[..., 2]).mean()
    assert share == pytest.approx(np.pi * 40**2 / SIZE**2, rel=0.02)
    assert picture[0, 0].argmax() == 2


def test_neon_is_dark_but_for_the_outline():
    picture = np.asarray(draw_scene(Scene("circle", "green", "white", radius=40), "neon"))
    assert picture[SIZE // 2, SIZE // 2].max() < 80
    assert picture[SIZE // 2, SIZE // 2 + 40, 1] > 150


def test_mosaic_tiles_are_flat_between_their_joints():
    picture = np.asarray(draw_scene(Scene("house", "pink", "green"), "mosaic"))
    tiles = picture.reshape(SIZE // TILE, TILE, SIZE // TILE, TILE, 3)
    inside = tiles[:, 1:-1, :, 1:-1]
    assert (np.ptp(inside, axis=(1, 3)) == 0).all()
    assert (tiles[:, 0] == tiles[0, 0, 0, 0]).all()


def test_drawn_pictures_are_nearest_to_their_own_style():
    scenes = random_scenes(16, seed=2)
    for style in STYLES:
        pictures = [draw_scene(scene, style) for scene in scenes]
        distances = {other: style_distance(pictures, other) for other in STYLES}
        assert min(distances, key=distances.get) == style
        assert 2 * distances.pop(style) < min(distances.values())


def test_unknown_styles_and_wrong_sizes_are_refused():
    picture = draw_scene(Scene("circle", "red", "blue"))
    with pytest.raises(UnknownChoiceError, match="mosaic, neon, plain"):
        draw_scene(Scene("circle", "red", "blue"), "cubist")
    with pytest.raises(UnknownChoiceError, match="style 'cubist'"):
        style_distance([picture], "cubist")
    with pytest.raises(LoraError, match="128 x 128"):
        style_distance([picture.resize((64, 64))], "neon")
    with pytest.raises(LoraError, match="none"):
        style_distance([], "neon")
