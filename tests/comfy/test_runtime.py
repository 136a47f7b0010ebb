"""Runtime mode: LoRAs that run unmerged, against the same LoRAs merged into the weights."""

import importlib
import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from .checkpoints import SLIM, lora_targets, unet_targets, write_lora
from .conftest import same_values

PROMPT = "a lighthouse at dusk"


@pytest.fixture(scope="module")
def slim(comfy, slim_checkpoint):
    """MODEL and CLIP of the slim checkpoint, float32 on the CPU."""
    import nodes

    with torch.inference_mode():
        model, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint(slim_checkpoint)
        # Stored in fp16, where a merge rounds and runtime mode does not.
        clip.cond_stage_model.float()
    return model, clip


@pytest.fixture(autouse=True)
def inference_mode(comfy):
    """As in ComfyUI's executor."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def loras(comfy):
    """Two files that change every matrix and kernel."""
    write_lora(comfy.loras_dir / "run_a.safetensors", lora_targets(SLIM), rank=4, alpha=2, seed=1)
    write_lora(comfy.loras_dir / "run_b.safetensors", lora_targets(SLIM), rank=8, seed=2)
    return "run_a.safetensors", "run_b.safetensors"


def apply(model, clip, rows, mode):
    """MODEL, CLIP and report of our Apply node."""
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchApply"]()
    model, clip, report, _ = node.execute(model, rows, clip, mode=mode)["result"]
    return model, clip, report


def latents(model, clip):
    """One sampled step, with text encoded by ``clip``."""
    import nodes

    (text,) = nodes.CLIPTextEncode().encode(clip, PROMPT)
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    (result,) = nodes.common_ksampler(model, 7, 1, 1.0, "euler", "normal", text, text, latent)
    return result["samples"]


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def forwards(*patchers):
    """Every module that has a forward of its own, which no module has in an untouched model."""
    return [
        name
        for patcher in patchers
        for name, module in patcher.model.named_modules()
        if "forward" in module.__dict__
    ]


def weights_of(*patchers):
    return {
        (type(patcher.model).__name__, name): tensor.clone()
        for patcher in patchers
        for name, tensor in patcher.model.state_dict().items()
    }


def assert_same_values(state, before):
    assert [key for key in before if not same_values(state[key], before[key])] == []


def one_row(lora, strength=1.0):
    return f"<lora:{lora}:{strength}>"


def test_runtime_gives_the_latents_of_merge_and_leaves_the_base_exact(slim, loras):
    patchers = slim[0], slim[1].patcher
    rows = f"<lora:{loras[0]}:0.8:0.6>\n<lora:{loras[1]}:-0.5:0.7>"
    before, base = weights_of(*patchers), latents(*slim)
    model, clip, report = apply(*slim, rows, "runtime")
    got = latents(model, clip)
    assert len(forwards(*patchers)) == len(lora_targets(SLIM))
    assert_same_values(weights_of(*patchers), before)

    expected = latents(*apply(*slim, rows, "merge")[:2])
    assert relative_error(expected, base) > 1e-2
    assert relative_error(got, expected) < 1e-5
    assert "runtime, LoRAs added in each forward pass (ModelPatcher)" in report
    assert "modules run their LoRAs unmerged" in report

    assert torch.equal(latents(*slim), base)
    assert forwards(*patchers) == []
    assert_same_values(weights_of(*patchers), before)


FLUX = {
    "image_model": "flux",
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": 24,
    "context_in_dim": 40,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


def random_model(module, seed=0):
    """Fill ComfyUI's uninitialised weights."""
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        scale = 0.02 if weight.dim() < 2 else weight[0].numel() ** -0.5
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale)


@pytest.fixture
def flux(comfy):
    """A MODEL of ComfyUI's own Flux, with one block of each kind."""
    from comfy import model_base, model_patcher, supported_models
    from comfy.ldm.flux.model import FluxParams

    known = {"image_model", *FluxParams.__dataclass_fields__}  # ComfyUI: 0.3.64 knows fewer
    config = supported_models.Flux({name: FLUX[name] for name in FLUX if name in known})
    config.set_inference_dtype(torch.float32, None)
    model = model_base.Flux(config, device=torch.device("cpu"))
    random_model(model)
    return model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def flux_output(patcher):
    from comfy import model_management

    model_management.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    y, one = torch.ones(1, 24), torch.ones(1)
    context = torch.randn(1, 6, 40, generator=generator)
    return patcher.model.diffusion_model(x, one, context, y, one)


def write_flux_lora(path, modules, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, columns) in modules.items():
        prefix = f"transformer.{name}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(3, columns, generator=generator) * 0.3
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, 3, generator=generator) * 0.3
    save_file(tensors, path)


FLUX_MODULES = {
    "transformer_blocks.0.attn.to_q": (64, 64),
    "transformer_blocks.0.attn.to_v": (64, 64),
    "transformer_blocks.0.attn.add_k_proj": (64, 64),
    "transformer_blocks.0.ff.net.0.proj": (256, 64),
    "single_transformer_blocks.0.attn.to_k": (64, 64),
    "single_transformer_blocks.0.proj_mlp": (256, 64),
    "single_transformer_blocks.0.proj_out": (64, 320),
}


@pytest.fixture(scope="module")
def flux_loras(comfy):
    """Two files for ``flux``."""
    names = "run_flux_a.safetensors", "run_flux_b.safetensors"
    for seed, name in enumerate(names):
        write_flux_lora(comfy.loras_dir / name, FLUX_MODULES, seed)
    return names


def test_slices_of_a_fused_projection_run_each_on_its_own_rows(flux, flux_loras):
    """Diffusers' to_q, to_k, to_v and proj_mlp are rows of Flux's fused layers in ComfyUI."""
    base = flux_output(flux)
    got = flux_output(apply(flux, None, one_row(flux_loras[0]), "runtime")[0])
    expected = flux_output(apply(flux, None, one_row(flux_loras[0]), "merge")[0])
    assert relative_error(expected, base) > 1e-2
    assert relative_error(got, expected) < 1e-5
    assert torch.equal(flux_output(flux), base)


def test_a_function_of_the_delta_is_patched(comfy, flux):
    """ComfyUI swaps the halves of norm_out's delta: what a function does cannot run unmerged."""
    write_flux_lora(comfy.loras_dir / "run_swap.safetensors", {"norm_out.linear": (128, 64)}, 0)
    runtime, _, report = apply(flux, None, one_row("run_swap.safetensors"), "runtime")
    got = flux_output(runtime)
    expected = flux_output(apply(flux, None, one_row("run_swap.safetensors"), "merge")[0])
    assert torch.equal(got, expected)
    assert "patched: 1 Linear" in report


def test_another_strength_patches_no_weight_and_gives_another_picture(
    flux, flux_loras, adapter_calls
):
    base = flux_output(flux)
    half, whole = (apply(flux, None, one_row(flux_loras[0], s), "runtime")[0] for s in (0.5, 1.0))
    first, second = flux_output(half), flux_output(whole)
    assert relative_error(second, first) > 1e-2
    assert torch.equal(flux_output(half), first)
    assert torch.equal(flux_output(flux), base)
    assert adapter_calls == []
    assert half.patches_uuid == whole.patches_uuid == flux.patches_uuid


@pytest.mark.parametrize(
    "modes", [("runtime", "runtime"), ("merge", "runtime"), ("runtime", "merge")]
)
def test_two_nodes_in_a_row_are_one_node_with_both_rows(flux, flux_loras, modes):
    base, model = flux_output(flux), flux
    for lora, mode in zip(flux_loras, modes, strict=True):
        model, _, _ = apply(model, None, one_row(lora, 0.7), mode)
    rows = "\n".join(one_row(lora, 0.7) for lora in flux_loras)
    expected = flux_output(apply(flux, None, rows, "merge")[0])
    assert relative_error(flux_output(model), expected) < 1e-5
    assert torch.equal(flux_output(flux), base)


def test_runtime_and_merge_of_one_stack_are_not_taken_for_each_other(comfy, flux):
    """Both patch norm_out: an equal uuid would keep the other's weights."""
    modules = {"norm_out.linear": (128, 64), "transformer_blocks.0.attn.to_q": (64, 64)}
    write_flux_lora(comfy.loras_dir / "run_both.safetensors", modules, 0)
    runtime, merge = (
        apply(flux, None, one_row("run_both.safetensors"), mode)[0] for mode in ("runtime", "merge")
    )
    first = flux_output(runtime)
    assert relative_error(flux_output(merge), first) < 1e-5
    assert torch.equal(flux_output(runtime), first)


@pytest.fixture(scope="module")
def every_kind(comfy):
    """Tucker and 1x1 convolutions, full differences, biases, and a norm, which cannot run."""
    generator = torch.Generator().manual_seed(3)

    def noise(*shape):
        return torch.randn(*shape, generator=generator) * 0.1

    block = "lora_unet_down_blocks_0_resnets_0"
    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1"
    tensors = {
        f"{block}_conv1.lora_down.weight": noise(4, 320, 1, 1),
        f"{block}_conv1.lora_up.weight": noise(320, 4, 1, 1),
        f"{block}_conv1.lora_mid.weight": noise(4, 4, 3, 3),
        f"{block}_conv2.diff": noise(320, 320, 3, 3) * 0.1,
        f"{block}_conv2.diff_b": noise(320),
        f"{block}_time_emb_proj.diff_b": noise(320),
        f"{block}_norm1.w_norm": noise(320),
        f"{attention}_to_q.diff": noise(320, 320) * 0.1,
        f"{attention}_to_out_0.lora_down.weight": noise(4, 320),
        f"{attention}_to_out_0.lora_up.weight": noise(320, 4),
        f"{attention}_to_out_0.diff_b": noise(320),
    }
    save_file(tensors, comfy.loras_dir / "run_kinds.safetensors")
    return "run_kinds.safetensors"


def test_every_kind_runs_or_is_patched(slim, every_kind):
    model, clip, report = apply(*slim, one_row(every_kind), "runtime")
    expected = latents(*apply(*slim, one_row(every_kind), "merge")[:2])
    assert relative_error(expected, latents(*slim)) > 1e-2
    assert relative_error(latents(model, clip), expected) < 1e-5
    assert list(model.patches) == ["diffusion_model.input_blocks.1.0.in_layers.0.weight"]
    assert "patched: 1 GroupNorm" in report


class Toy(torch.nn.Module):
    """A model of linear layers, ``names`` of which share one module."""

    def __init__(self, names):
        super().__init__()
        shared = torch.nn.Linear(6, 6)
        for name in names:
            setattr(self, name, shared)
        self.device = torch.device("cpu")

    def forward(self, x):
        for child in self._modules.values():
            x = child(x)
        return x


def toy_patcher(names=("a",)):
    from comfy import model_patcher

    cpu = torch.device("cpu")
    return model_patcher.ModelPatcher(Toy(names).requires_grad_(False), cpu, cpu)


@pytest.fixture
def pack(comfy):
    """Modules of our pack as ComfyUI loaded it."""
    name = f"{comfy.pack.__name__}.hosts.comfy"
    return SimpleNamespace(
        runtime=importlib.import_module(f"{name}.runtime"),
        adapter=importlib.import_module(f"{name}.adapter"),
    )


def toy_runtime(pack, patcher, names=("a",), delta=1.0):
    """A clone with ``delta`` added to each weight at run time."""
    clone = patcher.clone()
    share = ("diff", delta, 1.0, False, (torch.ones(6, 6),), 0)
    adapter = pack.adapter.FusedLoraAdapter(set(), (False, share))
    assert pack.runtime.run_unmerged(clone, {f"{name}.weight": adapter for name in names}) == {}
    return clone


def load(patcher):
    from comfy import model_management

    model_management.load_models_gpu([patcher])
    return patcher.model


def test_half_precision_rounds_the_sum_once(pack):
    base = toy_patcher()
    base.model.half()
    x = torch.linspace(-1, 1, 6).half().reshape(1, 6)
    expected = (load(base)(x).float() + 0.1 * x.float().sum()).half()
    assert torch.equal(load(toy_runtime(pack, base, delta=0.1))(x), expected)


def test_eject_goes_backwards(pack):
    """One module under two names is wrapped twice: only the reverse order finds its forward."""
    base = toy_patcher(("a", "b"))
    x = torch.ones(1, 6)
    expected = load(base)(x)
    runtime = toy_runtime(pack, base, ("a", "b"))
    assert not torch.equal(load(runtime)(x), expected)
    assert torch.equal(load(base)(x), expected)
    assert forwards(base) == []


def test_a_clone_that_dies_takes_nothing_from_its_parent(pack):
    """ComfyUI ejects a dying clone that it never injected."""
    base, x = toy_patcher(), torch.ones(1, 6)
    runtime = toy_runtime(pack, base)
    expected = load(runtime)(x)
    clone = runtime.clone()
    assert clone.is_injected
    del clone
    assert torch.equal(runtime.model(x), expected)
    assert forwards(base) == ["a"]


def test_the_last_loaded_of_two_clones_is_the_one_that_runs(pack):
    from comfy import model_management

    base, x = toy_patcher(), torch.ones(1, 6)
    clones = [toy_runtime(pack, base, delta=delta) for delta in (1.0, 2.0)]
    outputs = [load(clone)(x) for clone in clones]
    model_management.load_models_gpu(clones)
    last = model_management.current_loaded_models[0].model
    assert torch.equal(base.model(x), outputs[clones.index(last)])
    load(base)
    assert forwards(base) == []


def test_a_model_whose_load_failed_carries_nothing(pack, monkeypatch):
    base = toy_patcher()
    runtime = toy_runtime(pack, base)
    monkeypatch.setattr(runtime, "load", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load(runtime)
    assert forwards(base) == []


def test_a_patcher_that_dies_while_loaded_leaves_the_model_clean(pack):
    base = toy_patcher()
    runtime = toy_runtime(pack, base)
    load(runtime)
    assert forwards(base) == ["a"]
    factors = weakref.ref(runtime.get_additional_models()[0].model.factors[0])
    del runtime
    assert forwards(base) == []
    assert factors() is None


@pytest.mark.comfyui("0.30", "it has no bypass LoRA")
@pytest.mark.parametrize("order", ["ours first", "core's first"])
def test_the_bypass_lora_of_core_goes_with_ours(flux, tmp_path, flux_loras, order):
    """Core ejects in the order of injection, and puts back what it found below itself."""
    from comfy import sd

    name = "transformer_blocks.0.ff.net.0.proj"  # core's bypass drops the fused ones
    write_flux_lora(tmp_path / "core.safetensors", {name: FLUX_MODULES[name]}, 5)
    tensors = load_file(tmp_path / "core.safetensors")

    def core(model):
        return sd.load_bypass_lora_for_models(model, None, tensors, 1.0, 1.0)[0]

    def ours(model):
        return apply(model, None, one_row(flux_loras[0]), "runtime")[0]

    base = flux_output(flux)
    first, second = (ours, core) if order == "ours first" else (core, ours)
    got = flux_output(second(first(flux)))
    merged = sd.load_lora_for_models(flux, None, tensors, 1.0, 1.0)[0]
    expected = flux_output(apply(merged, None, one_row(flux_loras[0]), "merge")[0])
    assert relative_error(got, expected) < 1e-5
    assert torch.equal(flux_output(flux), base)


def interrupted(*_, **__):
    from comfy import model_management

    raise model_management.InterruptProcessingException


def test_an_interrupt_leaves_no_changed_forward(slim, loras, monkeypatch):
    from comfy import model_management

    base = latents(*slim)
    model, clip, _ = apply(*slim, one_row(loras[0]), "runtime")
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "apply_model", interrupted)
        with pytest.raises(model_management.InterruptProcessingException):
            latents(model, clip)
    assert torch.equal(latents(*slim), base)
    assert forwards(slim[0], slim[1].patcher) == []


def test_comfyui_counts_the_memory_of_the_factors(slim, loras):
    from comfy import model_management

    model, clip, _ = apply(*slim, one_row(loras[0]), "runtime")
    latents(model, clip)
    (factors,) = model.get_additional_models()
    assert factors in model_management.loaded_models()
    sizes = [4 * (t.shape[0] + math.prod(t.shape[1:])) for t in unet_targets(SLIM)]
    assert factors.loaded_size() == factors.model_size() == 4 * sum(sizes)
    if hasattr(factors, "deepclone_multigpu"):  # not in ComfyUI 0.3.64
        assert factors.deepclone_multigpu(factors.load_device).model_size() == factors.model_size()
