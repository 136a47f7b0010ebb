"""Published workflows with core's LoRA loaders: one Apply in place of the chain, equal weights."""

import asyncio
import json

import pytest
import torch

from lora_workbench.headless.workflow.convert import to_api

from .checkpoints import SLIM, lora_targets, write_lora
from .test_published_files import BOUND, base_weights, patched_weights

# The workflow, and how many loaders its chain has.
WORKFLOWS = {
    "ComfyUI_examples__lora": 1,
    "ComfyUI_examples__lora_multiple": 2,
    "ComfyUI_examples__lcm_basic_example": 1,
}


@pytest.fixture(scope="module")
def object_info(comfy):
    """What GET /object_info answers for the nodes of these workflows."""
    import nodes

    file = comfy.root / "comfy_extras" / "nodes_model_advanced.py"
    asyncio.run(nodes.load_custom_node(str(file), module_parent="comfy_extras"))
    return {name: comfy.object_info(name) for name in nodes.NODE_CLASS_MAPPINGS}


@pytest.fixture(scope="module")
def loaded(slim_checkpoint):
    """MODEL and CLIP in place of the workflows' checkpoints."""
    import nodes

    with torch.inference_mode():
        return nodes.CheckpointLoaderSimple().load_checkpoint(slim_checkpoint)[:2]


@pytest.fixture(params=WORKFLOWS)
def chain(request, comfy, shared_data, object_info, slim_checkpoint):
    """The inputs of a workflow's loaders, from the checkpoint on; their files are in the list."""
    path = shared_data / "workflows" / f"{request.param}.ui.json"
    loaders = loader_chain(to_api(json.loads(path.read_text()), object_info))
    assert len(loaders) == WORKFLOWS[request.param]
    targets = lora_targets(SLIM)
    for seed, inputs in enumerate(loaders):
        write_lora(comfy.loras_dir / inputs["lora_name"], targets, rank=4, seed=seed)
    return loaders


def loader_chain(prompt):
    """The inputs of the LoraLoader nodes between checkpoint and sampler, first applied first."""
    loaders = {key: entry for key, entry in prompt.items() if entry["class_type"] == "LoraLoader"}
    following = {entry["inputs"]["model"][0]: key for key, entry in loaders.items()}
    (start,) = set(following) - set(loaders)
    ordered = []
    while start in following:
        start = following[start]
        ordered.append(loaders[start]["inputs"])
    return ordered


def core_chain(model, clip, chain):
    import nodes

    with torch.inference_mode():
        for inputs in chain:
            names = ("lora_name", "strength_model", "strength_clip")
            model, clip = nodes.LoraLoader().load_lora(model, clip, *(inputs[n] for n in names))
    return model, clip


def one_apply(model, clip, chain):
    import nodes

    rows = [
        {
            "name": inputs["lora_name"],
            "model": inputs["strength_model"],
            "clip": inputs["strength_clip"],
        }
        for inputs in chain
    ]
    with torch.inference_mode():
        apply = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchApply"]()
        return apply.execute(model, json.dumps(rows), clip=clip)["result"][:2]


def test_one_apply_in_place_of_the_loaders_gives_equal_weights(loaded, chain):
    core = patched_weights(*core_chain(*loaded, chain))
    ours = patched_weights(*one_apply(*loaded, chain))
    base = base_weights(*loaded, core)
    assert set(ours) == set(core)
    for key, expected in core.items():
        delta = (expected - base[key]).abs().max()
        assert delta > 0, key
        ulp = torch.nextafter(expected.abs(), torch.tensor(torch.inf)) - expected.abs()
        assert bool(((ours[key] - expected).abs() <= BOUND * delta + ulp).all()), key
