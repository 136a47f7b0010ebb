"""Published LoRA files on every weight of SD1.5, against ComfyUI's own LoraLoader."""

import json

import pytest
import torch

from .conftest import node, text_to_image

KOHYA = "analog_svd_rank4.kohya.safetensors"
PEFT = "analog_svd_rank4.peft.safetensors"
STRENGTH_MODEL, STRENGTH_CLIP = 0.8, 0.6
BOUND = 2e-6  # of max |delta|, beside 1 ulp of the storage dtype


@pytest.fixture(scope="module")
def published(comfy, shared_data):
    """The two files in ComfyUI's list."""
    for name in (KOHYA, PEFT):
        path = shared_data / "real_files" / "cloneofsimo-lora" / name
        link = comfy.loras_dir / name
        if not link.exists():
            link.symlink_to(path)


@pytest.fixture(scope="module")
def loaded(full_checkpoint):
    """MODEL and CLIP of the full-shape checkpoint."""
    import nodes

    with torch.inference_mode():
        return nodes.CheckpointLoaderSimple().load_checkpoint(full_checkpoint)[:2]


def patched_weights(model, clip):
    """Load both as a sampler does; return a copy of each patched weight, then unload."""
    from comfy import model_management

    copies = {}
    with torch.inference_mode():
        for patcher in (model, clip.patcher):
            model_management.load_models_gpu([patcher])
            state = patcher.model.state_dict()
            copies |= {key: state[key].clone() for key in patcher.patches}
        model_management.unload_all_models()
    return copies


def base_weights(model, clip, keys):
    state = {**model.model.state_dict(), **clip.patcher.model.state_dict()}
    return {key: state[key].clone() for key in keys}


def apply_ours(comfy, model, clip, name):
    import nodes

    rows = json.dumps([{"name": name, "model": STRENGTH_MODEL, "clip": STRENGTH_CLIP}])
    with torch.inference_mode():
        apply = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchApply"]()
        return apply.execute(model, rows, clip=clip)["result"]


def apply_core(model, clip, name):
    import nodes

    with torch.inference_mode():
        return nodes.LoraLoader().load_lora(model, clip, name, STRENGTH_MODEL, STRENGTH_CLIP)


@pytest.fixture(scope="module")
def ours(comfy, published, loaded):
    """Weights that our Apply patched with the kohya file."""
    return patched_weights(*apply_ours(comfy, *loaded, KOHYA)[:2])


def test_patched_weights_equal_core_on_every_key_core_maps(published, loaded, ours):
    core = patched_weights(*apply_core(*loaded, KOHYA))
    base = base_weights(*loaded, core)
    assert set(ours) == set(core)
    for key, expected in core.items():
        delta = (expected - base[key]).abs().max()
        assert delta > 0, key
        ulp = torch.nextafter(expected.abs(), torch.tensor(torch.inf)) - expected.abs()
        error = (ours[key] - expected).abs()
        assert bool((error <= BOUND * delta + ulp).all()), key


def test_keys_that_core_drops_are_applied_too(comfy, published, loaded, ours):
    """The PEFT twin holds the same values under names of which core knows a part."""
    core_model, core_clip = apply_core(*loaded, PEFT)
    known = {*core_model.patches, *core_clip.patcher.patches}
    peft = patched_weights(*apply_ours(comfy, *loaded, PEFT)[:2])
    assert known < set(peft) == set(ours)
    assert len(peft) == 192
    for key, weight in peft.items():
        torch.testing.assert_close(weight, ours[key], rtol=0, atol=0, msg=key)


def test_the_base_comes_back_bit_for_bit(comfy, published, loaded, ours):
    before = base_weights(*loaded, ours)
    patched_weights(*apply_ours(comfy, *loaded, KOHYA)[:2])
    after = base_weights(*loaded, ours)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_graph_runs_and_strength_0_gives_the_base_picture(
    comfy, published, full_checkpoint, adapter_calls
):
    executor = comfy.new_executor()

    def run(model, clip):
        rows = [{"name": KOHYA, "model": model, "clip": clip}]
        apply = node(
            "LoraWorkbenchApply",
            model=["checkpoint", 0],
            clip=["checkpoint", 1],
            rows=json.dumps(rows),
        )
        graph = text_to_image(
            full_checkpoint, model=("apply", 0), clip=("apply", 1), extra={"apply": apply}
        )
        return executor.run(graph)

    base = executor.run(text_to_image(full_checkpoint)).pictures[0].read_bytes()
    strong = run(4.0, 1.0)
    assert strong.pictures[0].read_bytes() != base
    assert "576 / 576 tensors used" in strong.outputs["apply"]["text"][0]
    adapter_calls.clear()
    again = run(4.0, 1.0)
    assert (again.executed, adapter_calls) == ((), [])
    assert run(0.0, 0.0).pictures[0].read_bytes() == base
