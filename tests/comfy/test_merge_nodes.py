"""Merge Into Model and Unmerge From Model in graphs that a real ComfyUI executes."""

import asyncio
import json

import pytest
import torch
from safetensors.torch import load_file

from .checkpoints import SLIM, attention_targets, lora_targets, write_lora
from .conftest import NodeFailedError, node, text_to_image

FIRST, SECOND = "merge_first.safetensors", "merge_second.safetensors"
NAMES_FILES = pytest.mark.comfyui("0.30", "a MODEL does not say which file it came from")
RUNGS = ["auto", "residual", pytest.param("file", marks=NAMES_FILES), "full"]


@pytest.fixture(scope="module")
def loras(comfy, slim_checkpoint):
    """A LoRA for every weight, and one for attention alone."""
    targets = lora_targets(SLIM)
    write_lora(comfy.loras_dir / FIRST, targets, rank=4, seed=1)
    write_lora(comfy.loras_dir / SECOND, attention_targets(targets), rank=8, seed=2)


@pytest.fixture(scope="module")
def merge_nodes(comfy):
    """ComfyUI's own nodes for merging and saving, which its base set leaves out."""
    import nodes

    file = comfy.root / "comfy_extras" / "nodes_model_merging.py"
    asyncio.run(nodes.load_custom_node(str(file), module_parent="comfy_extras"))


def rows_of(*loras):
    """Rows from names, or (name, strength) pairs."""
    pairs = [(lora, 1.0) if isinstance(lora, str) else lora for lora in loras]
    return json.dumps([{"name": name, "model": strength} for name, strength in pairs])


def stack_node(*loras):
    return node("LoraWorkbenchStack", rows=rows_of(*loras))


def merge_node(stack="stack", source="checkpoint", **inputs):
    return node(
        "LoraWorkbenchMerge",
        model=[source, 0],
        clip=[source, 1],
        lora_stack=[stack, 0],
        **inputs,
    )


def sampled(checkpoint, source, extra, **options):
    """Text to image with MODEL and CLIP of one node."""
    return text_to_image(checkpoint, model=(source, 0), clip=(source, 1), extra=extra, **options)


def merge_graph(checkpoint, *loras, **inputs):
    return sampled(
        checkpoint, "merge", {"stack": stack_node(*loras), "merge": merge_node(**inputs)}
    )


def apply_graph(checkpoint, *loras):
    apply = node(
        "LoraWorkbenchApply",
        model=["checkpoint", 0],
        clip=["checkpoint", 1],
        rows=rows_of(*loras),
    )
    return sampled(checkpoint, "apply", {"apply": apply})


def unmerge_node(source="merge"):
    return node("LoraWorkbenchUnmerge", model=[source, 0], clip=[source, 1])


def picture(result):
    (path,) = result.pictures
    return path.read_bytes()


def text(result, node_id):
    return result.outputs[node_id]["text"][0]


@pytest.mark.parametrize("undo", RUNGS)
def test_a_merge_gives_the_picture_of_apply(executor, slim_checkpoint, loras, undo):
    applied = picture(executor.run(apply_graph(slim_checkpoint, FIRST, (SECOND, 0.5))))
    result = executor.run(merge_graph(slim_checkpoint, FIRST, (SECOND, 0.5), undo=undo))
    assert picture(result) == applied
    weights = len(lora_targets(SLIM))
    assert f"weights: {weights} merged in place\n" in text(result, "merge")


def test_strength_0_gives_the_picture_of_the_base(executor, slim_checkpoint, loras):
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    assert picture(executor.run(merge_graph(slim_checkpoint, (FIRST, 0.0)))) == base


def test_a_baked_model_gives_the_picture_of_apply(executor, slim_checkpoint, loras):
    applied = picture(executor.run(apply_graph(slim_checkpoint, FIRST)))
    result = executor.run(merge_graph(slim_checkpoint, FIRST, mode="bake"))
    assert picture(result) == applied
    assert "baked" in text(result, "merge")


def test_unmerge_gives_the_picture_of_the_base_again_and_again(executor, slim_checkpoint, loras):
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    graph = merge_graph(slim_checkpoint, FIRST, undo="residual")
    merged = picture(executor.run(graph))
    extra = {key: graph[key] for key in ("stack", "merge")} | {"unmerge": unmerge_node()}
    unmerged = sampled(slim_checkpoint, "unmerge", extra)
    for _ in range(2):
        result = executor.run(unmerged)
        assert picture(result) == base
        assert FIRST in text(result, "unmerge")
        assert picture(executor.run(graph)) == merged
    assert base != merged


def test_two_branches_of_one_graph_keep_their_own_pictures(executor, slim_checkpoint, loras):
    """The merged branch is sampled between two samplings of the clean MODEL."""
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    graph = merge_graph(slim_checkpoint, FIRST, undo="residual")
    merged = picture(executor.run(graph))
    clean = json.dumps(text_to_image(slim_checkpoint))
    for name in ("positive", "negative", "sampler", "decode", "save"):
        clean = clean.replace(f'"{name}"', f'"clean_{name}"')
    clean = json.loads(clean.replace('"test"', '"clean"'))
    for found in clean.values():  # the keys of inputs keep their names
        found["inputs"] = {
            key.removeprefix("clean_"): value for key, value in found["inputs"].items()
        }
    result = executor.run(graph | clean)
    pictures = {path.name.split("_")[0]: path.read_bytes() for path in result.pictures}
    assert pictures == {"test": merged, "clean": base}


def test_an_equal_merge_made_anew_merges_nothing(comfy, executor, slim_checkpoint, loras):
    graph = merge_graph(slim_checkpoint, FIRST, undo="residual")
    executor.run(graph)
    graph["stack"]["inputs"]["rows"] += " "
    backups = backups_of_loaded_models()
    assert {"merge", "sampler"} <= set(executor.run(graph).executed)
    assert backups_of_loaded_models() == backups
    assert backups


def backups_of_loaded_models():
    """Identity of every backup that stands for a weight of a loaded model."""
    from comfy import model_management

    return {
        (key, id(backup))
        for loaded in model_management.current_loaded_models
        for key, backup in loaded.model.backup.items()
    }


@pytest.mark.usefixtures("merge_nodes")
@pytest.mark.parametrize("core_node", ["simple", "save"])
def test_core_nodes_do_with_a_merge_what_they_do_with_apply(
    comfy, executor, slim_checkpoint, loras, core_node
):
    """ModelMergeSimple of the base and it, and CheckpointSave of it."""
    results = []
    for source, graph in (
        ("apply", apply_graph(slim_checkpoint, FIRST)),
        ("merge", merge_graph(slim_checkpoint, FIRST, undo="residual")),
    ):
        executor.run(graph)  # loaded: ComfyUI reads weights that are merged
        if core_node == "simple":
            graph["mix"] = node(
                "ModelMergeSimple", model1=["checkpoint", 0], model2=[source, 0], ratio=0.25
            )
            graph["sampler"]["inputs"]["model"] = ["mix", 0]
            results.append(picture(executor.run(graph)))
        else:
            graph["write"] = node(
                "CheckpointSave",
                model=[source, 0],
                clip=[source, 1],
                vae=["checkpoint", 2],
                filename_prefix=f"core_{source}",
            )
            executor.run(graph)
            (path,) = comfy.output_dir.glob(f"core_{source}_*.safetensors")
            results.append(load_file(path))
            path.unlink()
    if core_node == "simple":
        assert results[0] == results[1]
    else:
        assert results[0].keys() == results[1].keys()
        for key, value in results[0].items():
            torch.testing.assert_close(results[1][key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_a_rung_that_cannot_be_had_is_an_error_of_the_merge_node(
    executor, slim_checkpoint, loras, monkeypatch
):
    from comfy import sd

    real = sd.load_checkpoint_guess_config

    def without_path(*args, **kwargs):
        loaded = real(*args, **kwargs)
        loaded[0].cached_patcher_init = None
        loaded[1].patcher.cached_patcher_init = None
        return loaded

    monkeypatch.setattr(sd, "load_checkpoint_guess_config", without_path)
    with pytest.raises(NodeFailedError, match="'file' is not available") as caught:
        executor.run(merge_graph(slim_checkpoint, FIRST, undo="file"))
    assert caught.value.node_id == "merge"
    assert "Fix: use undo 'auto'" in caught.value.message
