"""The nodes on the embedded host, over a small random checkpoint of SD1.5's structure."""

import json

import pytest
import torch

from lora_workbench.headless.graph import Runner, validate
from lora_workbench.hosts.embedded.folders import Folders, confined, numbered
from lora_workbench.hosts.embedded.handles import Model
from lora_workbench.hosts.embedded.host import EmbeddedHost
from lora_workbench.hosts.embedded.nodes import core_mappings
from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.patching.merge_file import MERGED_KEY
from lora_workbench.lora_core.stack import StackItem
from lora_workbench.nodes import node_mappings

from .tiny_pipeline import bits_of, lora_for, same_bits


@pytest.fixture
def host(models, tmp_path):
    folders = {name: tmp_path / name for name in ("input", "output", "temp", "user")}
    for folder in folders.values():
        folder.mkdir()
    return EmbeddedHost(Folders(models, **folders))


@pytest.fixture
def loaded(host):
    return host.load_checkpoint("tiny.safetensors")


@pytest.fixture
def items(loaded, generator):
    """Two LoRAs on UNet and text encoder."""
    model, clip, _ = loaded
    weights = {**model.base.weights, **clip.base.weights}
    return [StackItem(lora_for(weights, name, generator), 0.8, 0.5) for name in ("a", "b")]


def carried(handle):
    """The bits of the UNet with what a handle carries."""
    return bits_of(handle.loaded().unet)


def test_a_checkpoint_is_loaded_once(host, loaded):
    assert host.load_checkpoint("tiny.safetensors")[0] is loaded[0]


def test_branches_carry_what_they_ask_for_whatever_was_loaded_before(host, loaded, items):
    model, clip, _ = loaded
    base = carried(model)
    one = host.apply(model, clip, items[:1], "report").model
    both = host.apply(one, clip, items[1:], "report").model
    at_once = host.apply(model, clip, items[::-1], "report").model
    with_one, with_both = carried(one), carried(both)
    assert not same_bits(with_one, base)
    assert not same_bits(with_both, with_one)
    assert same_bits(carried(model), base)
    assert same_bits(carried(at_once), with_both)
    assert same_bits(carried(one), with_one)
    assert same_bits(carried(model), base)


def test_a_changed_strength_writes_only_the_weights_it_touches(host, loaded, items):
    model, clip, _ = loaded
    host.apply(model, clip, items, "report").model.loaded()
    changed = [items[0], StackItem(items[1].lora, 0.3, 0.5)]
    handle = host.apply(model, clip, changed, "report").model
    before = {name: weight.clone() for name, weight in model.base.weights.items()}
    handle.loaded()
    different = {n for n, w in model.base.weights.items() if not torch.equal(w, before[n])}
    touched = set(handle.plan.terms) & set(model.base.weights)
    assert different
    assert different <= touched


def test_the_base_is_read_again_from_its_file(host, loaded, items):
    """The rung 'file' keeps nothing: the checkpoint in fp32 has the parameters' bits."""
    model, clip, _ = loaded
    ledger = host.apply(model, clip, items, "report").model.carry()
    assert set(ledger.rungs()) == {"file"}
    assert ledger.nbytes() == 0


def test_merge_and_unmerge_are_exact_and_leave_other_loras(host, loaded, items):
    model, clip, _ = loaded
    base = carried(model)
    applied = host.apply(model, clip, items[:1], "report")
    with_one = carried(applied.model)
    merged = host.merge(applied.model, applied.clip, items[1:], "on_device", "full")
    assert "full" in merged.facts["undo"]
    assert not same_bits(carried(merged.model), with_one)
    unmerged = host.unmerge(merged.model, merged.clip)
    assert same_bits(carried(unmerged.model), with_one)
    assert same_bits(carried(model), base)
    with pytest.raises(LoraError, match="Nothing is merged"):
        host.unmerge(unmerged.model, unmerged.clip)


def test_a_baked_model_is_a_base_of_its_own(host, loaded, items):
    model, clip, _ = loaded
    expected = carried(host.apply(model, clip, items, "report").model)
    baked = host.merge(model, clip, items, "bake", "auto")
    assert baked.model.base is not model.base
    base = carried(model)
    assert same_bits(carried(baked.model), expected)
    assert same_bits(carried(model), base)
    with pytest.raises(LoraError, match="Nothing is merged"):
        host.unmerge(baked.model, baked.clip)


@pytest.mark.parametrize("bake", [False, True], ids=["on the device", "baked"])
def test_a_saved_merge_is_a_checkpoint_with_its_lineage(host, loaded, items, bake):
    model, clip, vae = loaded
    base = carried(model)
    mode = "bake" if bake else "on_device"
    merged = host.merge(model, clip, items, mode, "auto")
    saved = host.save_model(merged.model, merged.clip, vae, "merged/new", "fp32", {"prompt": {}})
    expected = carried(merged.model)
    assert saved.path == host.folders.output / "merged" / "new_00001_.safetensors"
    entry = json.loads(open_safetensors(saved.path).metadata[MERGED_KEY])[0]
    assert entry["base"] == "tiny.safetensors"
    assert [lora["name"] for lora in entry["loras"]] == ["<memory>/a", "<memory>/b"]
    again = Model.of(checkpoint_of(saved.path).diffusion)
    assert same_bits(carried(again), expected)
    assert same_bits(carried(model), base)


def checkpoint_of(path):
    from lora_workbench.hosts.embedded.checkpoints import load_checkpoint

    return load_checkpoint(path)


def test_schedules_are_refused_with_the_way_out(host, items):
    with pytest.raises(LoraError, match=r"need ComfyUI's hooks[\s\S]*--comfyui"):
        host.hooks(items, [])


# Graphs


def graph(**changes):
    """Text to image, 4 steps, through our Apply."""
    built = {
        "checkpoint": ("CheckpointLoaderSimple", {"ckpt_name": "tiny.safetensors"}),
        "lora": (
            "LoraWorkbenchApply",
            {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "rows": ""},
        ),
        "text": ("CLIPTextEncode", {"text": "a (red:1.2) fox", "clip": ["lora", 1]}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 48, "batch_size": 2}),
        "sampler": (
            "KSampler",
            {
                "model": ["lora", 0],
                "positive": ["text", 0],
                "negative": ["text", 0],
                "seed": 3,
                "steps": 2,
                "cfg": 3.0,
                "denoise": 1.0,
                "latent_image": ["latent", 0],
                "sampler_name": "euler",
                "scheduler": "normal",
            },
        ),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["checkpoint", 2]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "sub/x"}),
    }
    built |= changes
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in built.items()}


def run(host, prompt, **extra):
    classes = core_mappings(host)[0] | node_mappings(host)[0]
    valid = validate(prompt, classes)
    assert valid.ok, valid.error
    runner = Runner(classes)
    host.report_progress = runner.progress.report
    return runner.run(valid.prompt, "", extra, valid.outputs)


def test_pictures_carry_the_graph_and_get_numbers_that_are_free(host):
    from PIL import Image

    prompt = graph()
    for expected in (["x_00001_.png", "x_00002_.png"], ["x_00003_.png", "x_00004_.png"]):
        result = run(host, prompt, extra_pnginfo={"workflow": {"nodes": []}})
        assert result.status == "success", result.error
        images = result.outputs["save"]["images"]
        assert [image["filename"] for image in images] == expected
    path = host.folders.output / "sub" / "x_00001_.png"
    with Image.open(path) as picture:
        assert picture.size == (16, 12)  # this VAE makes 2 pixels of a latent, not 8
        kept = json.loads(picture.info["prompt"])
        assert {key: entry["inputs"] for key, entry in kept.items()} == {
            key: entry["inputs"] for key, entry in prompt.items()
        }
        assert json.loads(picture.info["workflow"]) == {"nodes": []}


def test_a_picture_goes_through_the_vae_and_back_to_a_sampler(host):
    from PIL import Image

    Image.new("RGBA", (70, 50), (255, 0, 0, 128)).save(host.folders.input / "red.png")
    prompt = graph(
        image=("LoadImage", {"image": "red.png"}),
        latent=("VAEEncode", {"pixels": ["image", 0], "vae": ["checkpoint", 2]}),
        preview=("PreviewImage", {"images": ["decode", 0]}),
    )
    result = run(host, prompt)
    assert result.status == "success", result.error
    (preview,) = result.outputs["preview"]["images"]
    with Image.open(host.folders.temp / preview["filename"]) as picture:
        assert picture.size == (64, 48)  # cut to multiples of 8 pixels


def test_alpha_becomes_the_mask(host):
    from PIL import Image

    classes = core_mappings(host)[0]
    picture = Image.new("RGBA", (2, 1), (0, 0, 255, 51))
    picture.putpixel((1, 0), (255, 255, 255, 255))
    picture.save(host.folders.input / "blue.png")
    pixels, mask = classes["LoadImage"]().execute("blue.png")
    assert pixels.tolist() == [[[[0, 0, 1], [1, 1, 1]]]]
    torch.testing.assert_close(mask, torch.tensor([[[0.8, 0.0]]]))


def test_a_lora_file_changes_the_picture_and_strength_0_does_not(host, models, loaded, generator):
    model, clip, _ = loaded
    lora = lora_for({**model.base.weights, **clip.base.weights}, "x", generator, std=0.5)
    write_safetensors(
        models / "loras" / "x.safetensors", lora.file.read_many(lora.file.tensors), overwrite=True
    )
    pictures = []
    for strength in (None, 1.0, 0.0):
        rows = "" if strength is None else f"<lora:x:{strength}>"
        inputs = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "rows": rows}
        result = run(host, graph(lora=("LoraWorkbenchApply", inputs)))
        assert result.status == "success", result.error
        (pixels,) = result.results["save"][0]
        pictures.append(pixels)
    assert torch.equal(pictures[0], pictures[2])
    assert not torch.equal(pictures[0], pictures[1])


def test_a_checkpoint_without_a_part_is_an_error_of_the_node_that_needs_it(host):
    nodes = core_mappings(host)[0]
    with pytest.raises(LoraError, match="has no text encoder"):
        nodes["CLIPTextEncode"]().execute("x", None)
    with pytest.raises(LoraError, match="has no VAE"):
        nodes["VAEDecode"]().execute({"samples": torch.zeros(1, 4, 2, 2)}, None)


# Names


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "C:/x", "", "..\\x"])
def test_names_stay_in_their_folder(name, tmp_path):
    with pytest.raises(LoraError, match="not a name inside"):
        confined(tmp_path, name)


def test_numbers_go_on_after_the_highest_of_the_same_prefix(tmp_path):
    for name in ("x_00002_.png", "x_00009_.webp", "xy_00030_.png", "x_.png", "x_a_.png"):
        (tmp_path / name).touch()
    assert numbered(tmp_path, "x", 64, 32).name(1) == "x_00011_.png"
    assert numbered(tmp_path, "%width%x%height%", 64, 32).name(0) == "64x32_00001_.png"
    assert numbered(tmp_path, "b%batch_num%", 64, 32).name(3) == "b3_00004_.png"
