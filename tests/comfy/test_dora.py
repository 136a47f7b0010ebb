"""DoRA in ComfyUI 0.30: core's own loader, our patches, and LoRAs that run unmerged."""

import importlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from .checkpoints import SLIM, kohya_name, lora_targets, write_lora
from .quantised_model import effect_error, mxfp8_model
from .test_runtime import (
    apply,
    flux,  # noqa: F401  a fixture
    flux_output,
    forwards,
    inference_mode,  # noqa: F401  a fixture
    latents,
    one_row,
    relative_error,
    slim,  # noqa: F401  a fixture
)

AXES = {"outputs": 0, "inputs": 1}


def magnitude(base, axis, generator):
    """Norms a tenth off those of the base, shaped as LyCORIS stores them."""
    others = [dim for dim in range(base.dim()) if dim != axis]
    norms = torch.linalg.vector_norm(base.float(), dim=others, keepdim=True)
    return norms * (1 + 0.1 * torch.randn(norms.shape, generator=generator))


@pytest.fixture(scope="module")
def doras(comfy, slim_checkpoint):
    """Two files that change every matrix and kernel: by outputs, and by inputs."""
    stored = load_file(comfy.checkpoints_dir / slim_checkpoint)
    generator = torch.Generator().manual_seed(5)
    names = {}
    for label, axis in AXES.items():
        names[label] = f"dora_{label}.safetensors"
        path = comfy.loras_dir / names[label]
        write_lora(path, lora_targets(SLIM), rank=4, alpha=2, seed=6 + axis)
        tensors = load_file(path)
        for target in lora_targets(SLIM):
            key = target.target_key.replace("clip_l.", "cond_stage_model.")
            base = stored["model." + key if key.startswith("diffusion") else key]
            tensors[f"{kohya_name(target)}.dora_scale"] = magnitude(base, axis, generator)
        save_file(tensors, path)
    return names


def weights_of(patcher, targets):
    from comfy import model_management

    model_management.load_models_gpu([patcher])
    state = patcher.model.state_dict()
    return {t.target_key: state[t.target_key].clone() for t in targets if t.target_key in state}


def dora64(base, down, up, scale, norms, axis):
    """``W - W0`` from the definition, and the same with core's norm of the outputs."""
    base = base.double()
    change = scale * (up.double().flatten(1) @ down.double().flatten(1)).reshape(base.shape)
    others = [dim for dim in range(base.dim()) if dim != axis]
    normed = [torch.linalg.vector_norm(w, dim=others, keepdim=True) for w in (base + change, base)]
    return [(base + change) * norms.double() / norm - base for norm in normed]


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_by_inputs_apply_gives_the_weights_of_cores_loader(slim, doras, strength):  # noqa: F811
    import nodes

    targets = lora_targets(SLIM)
    ours = apply(*slim, f"<lora:{doras['inputs']}:{strength}:{strength}>", "merge")
    core = nodes.LoraLoader().load_lora(*slim, doras["inputs"], strength, strength)
    base = weights_of(slim[0], targets) | weights_of(slim[1].patcher, targets)
    compared = 0
    for mine, theirs in ((ours[0], core[0]), (ours[1].patcher, core[1].patcher)):
        expected = weights_of(theirs, targets)
        for key, got in weights_of(mine, targets).items():
            delta = expected[key] - base[key]
            assert (got - expected[key]).norm() <= 1e-5 * delta.norm(), key
            compared += 1
    assert compared == len(targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("shape", [(12, 9), (6, 4, 3, 3)], ids=["linear", "convolution"])
@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_ours_is_the_definition_and_core_but_for_its_norm_of_outputs(
    comfy, axis, shape, strength, dtype
):
    """Core divides rows by the norm they had before the LoRA (ComfyUI PR 15458)."""
    from comfy import lora
    from comfy.weight_adapter import LoRAAdapter

    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).to(dtype)
    out, inside, *kernel = shape
    down = torch.randn(2, inside, *kernel, generator=generator) * 0.3
    up = torch.randn(out, 2, *[1] * len(kernel), generator=generator) * 0.3
    norms = magnitude(base, axis, generator)
    module = importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.adapter")
    entry = ("dora", 1.0, ("lora", 3.0, axis), False, (down, up, norms), 0)
    adapters = {
        "ours": module.FusedLoraAdapter(set(), (False, entry)),
        "core": LoRAAdapter(set(), (up, down, 3.0, None, norms, None)),
    }
    got = {
        name: lora.calculate_weight(
            [(strength, adapter, 1.0, None, None)], base.float().clone(), "key"
        ).double()
        - base.double()
        for name, adapter in adapters.items()
    }
    trained, by_core = dora64(base, down, up, 1.5, norms, axis)
    assert (got["ours"] - strength * trained).norm() <= 1e-6 * trained.norm()
    expected = by_core if axis == 0 else trained
    assert (got["core"] - strength * expected).norm() <= 1e-6 * expected.norm()
    if axis == 0:
        assert (by_core - trained).norm() > 0.05 * trained.norm()
    merged = adapters["ours"].merged(base)
    exact = base.double() + trained
    assert (merged.double() - exact).norm() <= torch.finfo(dtype).eps * exact.norm()


def test_patches_in_a_row_see_what_lies_before_and_one_node_takes_the_base(comfy):
    """ComfyUI's order for a chain of nodes; the rows of one node are each taken on the base."""
    from comfy import lora

    module = importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.adapter")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(8, 6, generator=generator)
    entries = []
    for number in range(2):
        down, up = (torch.randn(s, generator=generator) for s in ((1, 6), (8, 1)))
        norms = magnitude(base, number, generator)
        entries.append(("dora", 1.0, ("lora", None, number), False, (down, up, norms), number))

    def delta(weight, entry):
        down, up, norms = entry[4]
        return dora64(weight, down, up, 1.0, norms, entry[2][2])[0]

    def patched(*adapters):
        records = [(1.0, module.FusedLoraAdapter(set(), w), 1.0, None, None) for w in adapters]
        return lora.calculate_weight(records, base.clone(), "key").double()

    summed = base.double() + delta(base, entries[0]) + delta(base, entries[1])
    torch.testing.assert_close(patched((False, *entries)), summed, rtol=1e-5, atol=1e-5)
    first = base.double() + delta(base, entries[0])
    chained = first + delta(first, entries[1])
    rows = patched((False, entries[0]), (False, entries[1]))
    torch.testing.assert_close(rows, chained, rtol=1e-5, atol=1e-5)
    assert (chained - summed).norm() > 1e-2 * summed.norm()


def test_a_merge_on_the_device_comes_off_to_the_bit(slim, doras):  # noqa: F811
    import nodes

    targets = lora_targets(SLIM)
    stack = [(doras["outputs"], 0.7, 0.7), (doras["inputs"], 0.4, 0.4)]
    base = weights_of(slim[0], targets)
    applied_rows = "\n".join(f"<lora:{name}:{strength}>" for name, strength, _ in stack)
    expected = weights_of(apply(slim[0], None, applied_rows, "merge")[0], targets)
    for undo in ("residual", "full"):
        node = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchMerge"]()
        model = node.execute(slim[0], stack, undo=undo)["result"][0]
        got = weights_of(model, targets)
        assert all(torch.equal(got[key], expected[key]) for key in expected)
        assert {entry.rung for entry in model.backup.values()} == {"full"}
        again = weights_of(slim[0], targets)
        assert all(torch.equal(again[key], base[key]) for key in base)


@pytest.mark.parametrize("axis", AXES)
def test_runtime_gives_the_latents_of_merge(slim, doras, axis):  # noqa: F811
    row = f"<lora:{doras[axis]}:0.8:0.6>"
    base = latents(*slim)
    model, clip, report = apply(*slim, row, "runtime")
    got = latents(model, clip)
    assert len(forwards(slim[0], slim[1].patcher)) == len(lora_targets(SLIM))
    assert (model.patches, clip.patcher.patches) == ({}, {})
    expected = latents(*apply(*slim, row, "merge")[:2])
    assert relative_error(expected, base) > 1e-2
    assert relative_error(got, expected) < 2e-5
    assert "runtime, LoRAs added in each forward pass" in report
    assert torch.equal(latents(*slim), base)


FLUX_MODULES = {
    "transformer_blocks.0.attn.to_q": ("double_blocks.0.img_attn.qkv", 0, 64),
    "transformer_blocks.0.attn.to_v": ("double_blocks.0.img_attn.qkv", 128, 64),
    "single_transformer_blocks.0.attn.to_k": ("single_blocks.0.linear1", 64, 64),
    "single_transformer_blocks.0.proj_mlp": ("single_blocks.0.linear1", 192, 256),
}


@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_a_slice_has_norms_of_its_own_rows(comfy, flux, axis):  # noqa: F811
    """Merged and unmerged, against float64; diffusers' to_q, to_k are rows of fused layers."""
    generator, tensors, expected = torch.Generator().manual_seed(axis), {}, {}
    state = flux.model.state_dict()
    for name, (layer, start, length) in FLUX_MODULES.items():
        key = f"diffusion_model.{layer}.weight"
        base = state[key][start : start + length]
        down = torch.randn(3, base.shape[1], generator=generator) * 0.3
        up = torch.randn(length, 3, generator=generator) * 0.3
        norms = magnitude(base, axis, generator)
        own = f"lora_transformer_{name.replace('.', '_')}"
        tensors[f"{own}.lora_down.weight"] = down
        tensors[f"{own}.lora_up.weight"] = up
        tensors[f"{own}.dora_scale"] = norms
        whole = expected.setdefault(key, state[key].double().clone())
        whole[start : start + length] += dora64(base, down, up, 1.0, norms, axis)[0]
    save_file(tensors, comfy.loras_dir / "dora_flux.safetensors")
    first = flux_output(flux)
    merged = apply(flux, None, one_row("dora_flux.safetensors"), "merge")[0]
    output = flux_output(merged)
    for key, exact in expected.items():
        got = flux.model.state_dict()[key].double()
        assert (got - exact).norm() <= 1e-6 * exact.norm(), key
    runtime = apply(flux, None, one_row("dora_flux.safetensors"), "runtime")[0]
    got = flux_output(runtime)
    assert runtime.patches == {}
    assert relative_error(output, first) > 1e-2
    assert relative_error(got, output) < 1e-5
    assert torch.equal(flux_output(flux), first)


def test_what_cannot_run_unmerged_is_patched(comfy, flux):  # noqa: F811
    """Rows of a product over some inputs (Flux's linear2), swapped halves (its last modulation)."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    state = flux.model.state_dict()
    final = state["diffusion_model.final_layer.adaLN_modulation.1.weight"]
    swapped = torch.cat([final[64:], final[:64]])  # as files of diffusers address it
    down, up = torch.randn(3, 64, generator=generator), torch.randn(128, 3, generator=generator)
    norms = magnitude(swapped, 0, generator)
    tensors["lora_transformer_norm_out_linear.lora_down.weight"] = down
    tensors["lora_transformer_norm_out_linear.lora_up.weight"] = up
    tensors["lora_transformer_norm_out_linear.dora_scale"] = norms
    save_file(tensors, comfy.loras_dir / "dora_swap.safetensors")
    exact = swapped.double() + dora64(swapped, down, up, 1.0, norms, 0)[0]
    exact = torch.cat([exact[64:], exact[:64]])
    model, _, report = apply(flux, None, one_row("dora_swap.safetensors"), "runtime")
    flux_output(model)
    got = flux.model.state_dict()["diffusion_model.final_layer.adaLN_modulation.1.weight"]
    assert (got.double() - exact).norm() <= 1e-6 * exact.norm()
    assert "patched: 1 Linear" in report
    flux_output(flux)
    model, _, report = apply(model, None, one_row("dora_swap.safetensors"), "runtime")
    assert "patched: 2 Linear" in report


@pytest.mark.parametrize("axis", AXES)
def test_a_quantised_base_keeps_the_effect(comfy, slim_checkpoint, doras, axis):
    """The layer's own weights, as they are stored, are the base."""
    model, target, base = mxfp8_model(comfy, slim_checkpoint)
    file, own = load_file(comfy.loras_dir / doras[axis]), kohya_name(target)
    down, up, norms = (
        file[f"{own}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "dora_scale")
    )
    delta, _ = dora64(base.double(), down, up, 0.5, norms, AXES[axis])
    auto, _, report = apply(model, None, one_row(doras[axis], 0.5), "auto")
    assert effect_error(model, auto, 0.5 * delta) < 5e-3
    assert "runtime, LoRAs added in each forward pass" in report
