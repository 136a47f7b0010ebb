"""Our Apply, Load, Stack and Inspect nodes in graphs that a real ComfyUI executes."""

import asyncio
import json

import pytest
import torch

from .checkpoints import SLIM, attention_targets, lora_targets, write_lora
from .conftest import NodeFailedError, PromptRejectedError, node, text_to_image


def apply_graph(checkpoint, rows, steps=1, **inputs):
    """Text to image with Apply LoRAs between loader and sampler, its report shown."""
    apply = node(
        "LoraWorkbenchApply",
        model=["checkpoint", 0],
        clip=["checkpoint", 1],
        rows=rows if isinstance(rows, str) else json.dumps(rows),
        **inputs,
    )
    return text_to_image(
        checkpoint, model=("apply", 0), clip=("apply", 1), steps=steps, extra={"apply": apply}
    )


def picture(result):
    (path,) = result.pictures
    return path.read_bytes()


def report(result):
    return result.outputs["apply"]["text"][0]


@pytest.fixture(scope="module")
def loras(comfy, slim_checkpoint):
    """Two kohya files and a PEFT file for the slim checkpoint."""
    targets = lora_targets(SLIM)
    write_lora(comfy.loras_dir / "first.safetensors", targets, rank=4, seed=1)
    write_lora(comfy.loras_dir / "second.safetensors", targets, rank=8, seed=2)
    write_lora(
        comfy.loras_dir / "peft.safetensors", attention_targets(targets), seed=3, naming="peft"
    )
    return ["first.safetensors", "second.safetensors", "peft.safetensors"]


def test_the_pack_registers_its_nodes(comfy):
    assert set(comfy.pack_nodes()) == {
        "LoraWorkbenchApply",
        "LoraWorkbenchLoad",
        "LoraWorkbenchStack",
        "LoraWorkbenchAdd",
        "LoraWorkbenchPrompt",
        "LoraWorkbenchWeight",
        "LoraWorkbenchMerge",
        "LoraWorkbenchUnmerge",
        "LoraWorkbenchSaveModel",
        "LoraWorkbenchInspect",
        "LoraWorkbenchHooks",
        "LoraWorkbenchDataset",
        "LoraWorkbenchTrainSettings",
        "LoraWorkbenchTrain",
    }


def test_apply_changes_the_picture_and_reports_every_tensor(executor, slim_checkpoint, loras):
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    result = executor.run(apply_graph(slim_checkpoint, [{"name": loras[0]}]))
    assert picture(result) != base
    tensors = 2 * len(lora_targets(SLIM))
    assert f"{tensors} / {tensors} tensors used" in report(result)


@pytest.mark.parametrize(
    "rows", ["[]", "", '[{"name": "first.safetensors", "model": 0, "clip": 0}]']
)
def test_no_effect_gives_the_base_picture_byte_for_byte(executor, slim_checkpoint, loras, rows):
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    assert picture(executor.run(apply_graph(slim_checkpoint, rows))) == base


def test_a_row_that_is_off_may_miss_its_file(executor, slim_checkpoint):
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    rows = [{"name": "gone.safetensors", "on": False}, {"name": "gone2", "model": 0, "clip": 0}]
    assert picture(executor.run(apply_graph(slim_checkpoint, rows))) == base


def test_the_same_graph_again_calls_no_adapter(executor, slim_checkpoint, loras, adapter_calls):
    graph = apply_graph(slim_checkpoint, [{"name": name} for name in loras])
    executor.run(graph)
    assert adapter_calls
    adapter_calls.clear()
    again = executor.run(graph)
    assert (again.executed, adapter_calls) == ((), [])


def test_an_equal_stack_made_anew_calls_no_adapter(
    comfy, executor, slim_checkpoint, loras, adapter_calls
):
    """The node runs again and makes another clone; ComfyUI sees an equal uuid."""
    graph = apply_graph(slim_checkpoint, [{"name": loras[0]}])
    executor.run(graph)
    adapter_calls.clear()
    graph["apply"]["inputs"]["rows"] = json.dumps([{"name": loras[0], "model": 1.0}])
    graph["sampler"]["inputs"]["seed"] = 8
    again = executor.run(graph)
    assert "apply" in again.executed
    assert "sampler" in again.executed
    assert adapter_calls == []


def test_one_adapter_per_weight_carries_the_whole_stack(
    executor, slim_checkpoint, loras, adapter_calls
):
    executor.run(apply_graph(slim_checkpoint, [{"name": name} for name in loras[:2]]))
    assert len(adapter_calls) == len(set(adapter_calls)) == len(lora_targets(SLIM))


def test_lora_stack_and_rows_apply_in_one_pass(executor, slim_checkpoint, loras):
    """Load -> Stack -> Apply with rows gives the bits of one Apply with all rows."""
    graph = apply_graph(
        slim_checkpoint, [{"name": loras[2], "model": 0.5}], lora_stack=["stack", 0]
    )
    graph["load"] = node(
        "LoraWorkbenchLoad", lora_name=loras[0], strength_model=0.8, strength_clip=0.7
    )
    graph["stack"] = node(
        "LoraWorkbenchStack", rows=f"<lora:{loras[1]}:0.6>", lora_stack=["load", 0]
    )
    rows = [
        {"name": loras[0], "model": 0.8, "clip": 0.7},
        {"name": loras[1], "model": 0.6},
        {"name": loras[2], "model": 0.5},
    ]
    one_node = picture(executor.run(apply_graph(slim_checkpoint, rows)))
    assert picture(executor.run(graph)) == one_node


def test_a_missing_file_is_named_with_near_matches(executor, slim_checkpoint, loras):
    with pytest.raises(NodeFailedError, match=r"firts\.safetensors is missing") as caught:
        executor.run(apply_graph(slim_checkpoint, [{"name": "firts.safetensors"}]))
    assert "first.safetensors" in caught.value.message
    assert "Fix:" in caught.value.message


def test_a_lora_for_another_base_is_an_error_before_sampling(comfy, executor, slim_checkpoint):
    wide = [t for t in lora_targets(SLIM) if t.target_key.startswith("diffusion_model.")][:4]
    factors = {}
    for target in wide:
        name = "lora_unet_" + target.target_key.removeprefix("diffusion_model.").removesuffix(
            ".weight"
        ).replace(".", "_")
        factors[f"{name}.lora_down.weight"] = torch.ones(4, 2048)
        factors[f"{name}.lora_up.weight"] = torch.ones(640, 4)
    from safetensors.torch import save_file

    save_file(factors, comfy.loras_dir / "other_base.safetensors")
    with pytest.raises(NodeFailedError, match="another base"):
        executor.run(apply_graph(slim_checkpoint, [{"name": "other_base.safetensors"}]))


def test_unreadable_rows_are_refused_when_the_graph_is_queued(executor, slim_checkpoint):
    with pytest.raises(PromptRejectedError, match="out of range"):
        executor.run(apply_graph(slim_checkpoint, "<lora:first:1000>"))


def test_runtime_mode_patches_no_weight(executor, slim_checkpoint, loras, adapter_calls):
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    rows = [{"name": loras[0]}]
    runtime = executor.run(apply_graph(slim_checkpoint, rows, mode="runtime"))
    assert picture(runtime) != base
    assert "runtime, LoRAs added in each forward pass" in report(runtime)
    assert adapter_calls == []
    again = executor.run(text_to_image(slim_checkpoint))
    assert "sampler" in again.executed
    assert picture(again) == base


def test_auto_merges_into_weights_that_are_not_quantised(executor, slim_checkpoint, loras):
    result = executor.run(apply_graph(slim_checkpoint, [{"name": loras[0]}], mode="auto"))
    assert "ComfyUI patches, one fused adapter per weight (ModelPatcher)" in report(result)


def test_names_cannot_leave_the_lora_folders(executor, slim_checkpoint):
    with pytest.raises(NodeFailedError, match="inside the LoRA folders"):
        executor.run(apply_graph(slim_checkpoint, [{"name": "../checkpoints/slim.safetensors"}]))


def test_apply_works_without_clip(executor, slim_checkpoint, loras):
    graph = apply_graph(slim_checkpoint, [{"name": loras[0]}])
    del graph["apply"]["inputs"]["clip"]
    for text in ("positive", "negative"):
        graph[text]["inputs"]["clip"] = ["checkpoint", 1]
    result = executor.run(graph)
    assert "not used here" in report(result)


def test_inspect_reports_on_a_file_and_its_model(executor, slim_checkpoint, loras):
    graph = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=slim_checkpoint),
        "load": node(
            "LoraWorkbenchLoad", lora_name=loras[2], strength_model=1.0, strength_clip=1.0
        ),
        "inspect": node(
            "LoraWorkbenchInspect",
            lora_model=["load", 1],
            model=["checkpoint", 0],
            clip=["checkpoint", 1],
        ),
    }
    text = executor.run(graph).outputs["inspect"]["text"][0]
    assert "format: peft" in text
    assert "OK" in text


@pytest.fixture(scope="module")
def core_training_nodes(comfy):
    """ComfyUI's own nodes for LORA_MODEL, which its base set leaves out."""
    import nodes

    file = comfy.root / "comfy_extras" / "nodes_train.py"
    asyncio.run(nodes.load_custom_node(str(file), module_parent="comfy_extras"))


@pytest.mark.usefixtures("core_training_nodes")
def test_lora_model_is_read_by_core(executor, slim_checkpoint, loras):
    """Core's own loader takes our LORA_MODEL under names it knows: the picture of our Apply."""
    graph = text_to_image(slim_checkpoint, model=("core", 0))
    graph["load"] = node(
        "LoraWorkbenchLoad", lora_name=loras[2], strength_model=1.0, strength_clip=1.0
    )
    graph["core"] = node(
        "LoraModelLoader",
        model=["checkpoint", 0],
        lora=["load", 1],
        strength_model=1.0,
        bypass=False,
    )
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    ours = apply_graph(slim_checkpoint, [{"name": loras[2], "clip": 0}])
    assert picture(executor.run(graph)) != base
    assert picture(executor.run(graph)) == picture(executor.run(ours))


def test_a_changed_file_is_noticed(comfy, executor, slim_checkpoint):
    path = comfy.loras_dir / "rewritten.safetensors"
    write_lora(path, lora_targets(SLIM), seed=5)
    graph = apply_graph(slim_checkpoint, [{"name": path.name}])
    first = picture(executor.run(graph))
    write_lora(path, lora_targets(SLIM), seed=6)
    assert picture(executor.run(graph)) != first
