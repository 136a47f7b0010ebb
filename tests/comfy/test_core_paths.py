"""Our patches where ComfyUI itself reads them: low memory, merging, saving, sliced keys."""

import asyncio
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from .checkpoints import SLIM, attention_targets, lora_targets, write_lora
from .conftest import node, text_to_image

ULPS = 4  # of float32: ComfyUI's merge nodes round once more than one addition


@pytest.fixture(scope="module")
def lora(comfy, slim_checkpoint):
    """A PEFT file: ComfyUI's own loader drops a part of its names."""
    path = comfy.loras_dir / "core_paths.safetensors"
    write_lora(path, attention_targets(lora_targets(SLIM)), seed=11, naming="peft")
    return path.name


@pytest.fixture(scope="module")
def merge_nodes(comfy):
    """ComfyUI's own nodes for merging and saving, which its base set leaves out."""
    import nodes

    file = comfy.root / "comfy_extras" / "nodes_model_merging.py"
    asyncio.run(nodes.load_custom_node(str(file), module_parent="comfy_extras"))


@pytest.fixture(scope="module")
def loaded(slim_checkpoint):
    import nodes

    with torch.inference_mode():
        return nodes.CheckpointLoaderSimple().load_checkpoint(slim_checkpoint)[:2]


def applied(model, name, strength, clip=None):
    """MODEL and CLIP of our Apply."""
    import nodes

    rows = json.dumps([{"name": name, "model": strength, "clip": strength}])
    with torch.inference_mode():
        apply = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchApply"]()
        return apply.execute(model, rows, clip=clip, mode="merge")["result"][:2]


def unet_output(model):
    """The UNet's output on fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    latent = torch.randn(1, 4, 8, 8, generator=generator)
    context = torch.randn(1, 77, 768, generator=generator)
    with torch.inference_mode():
        return model.model.diffusion_model(latent, torch.tensor([500.0]), context=context).clone()


def patched_state(patcher):
    """Copies of all weights as a sampler would find them."""
    from comfy import model_management

    with torch.inference_mode():
        model_management.load_models_gpu([patcher])
        state = {key: value.clone() for key, value in patcher.model.state_dict().items()}
        model_management.unload_all_models()
    return state


def test_weights_that_do_not_fit_are_patched_in_each_forward_pass(loaded, lora):
    """ComfyUI: where memory is short, modules stay as they are and carry functions."""
    from comfy import model_management

    model, _ = applied(loaded[0], lora, 2.0)
    with torch.inference_mode():
        model_management.load_models_gpu([model])
        whole = unet_output(model)
        model_management.unload_all_models()
        base = unet_output(loaded[0])
        model.patch_model(model.load_device, lowvram_model_memory=1)
        by_functions = [m for m in model.model.modules() if getattr(m, "weight_function", [])]
        short = unet_output(model)
        model.unpatch_model(model.offload_device)
        after = unet_output(loaded[0])
    assert len(by_functions) >= len(model.patches) // 2
    assert (whole - base).norm() > 0.01 * base.norm()
    assert (short - whole).norm() <= 1e-5 * (whole - base).norm()
    assert torch.equal(after, base)


@pytest.mark.usefixtures("merge_nodes")
@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_model_merge_simple_mixes_the_applied_lora_in(loaded, lora, ratio):
    """ratio of the first model's weights, 1 - ratio of the second's, in float64."""
    import nodes

    base = patched_state(loaded[0])
    model, _ = applied(loaded[0], lora, 1.0)
    whole = patched_state(model)
    merge = nodes.NODE_CLASS_MAPPINGS["ModelMergeSimple"]()
    with torch.inference_mode():
        (mixed,) = merge.merge(loaded[0], model, ratio)
    state = patched_state(mixed)
    for key in model.patches:
        wanted = ratio * base[key].double() + (1 - ratio) * whole[key].double()
        bound = ULPS * torch.finfo(torch.float32).eps * wanted.abs().max()
        assert (state[key] - wanted).abs().max() <= bound, key
    assert patched_state(loaded[0]).keys() == base.keys()
    assert all(torch.equal(value, base[key]) for key, value in patched_state(loaded[0]).items())


@pytest.mark.usefixtures("merge_nodes")
def test_a_checkpoint_saved_by_core_holds_the_lora(comfy, executor, slim_checkpoint, lora):
    """Loaded again and sampled without any LoRA, it gives the live picture."""
    rows = json.dumps([{"name": lora, "model": 1.0, "clip": 1.0}])
    apply = node("LoraWorkbenchApply", model=["checkpoint", 0], clip=["checkpoint", 1], rows=rows)
    graph = text_to_image(
        slim_checkpoint, model=("apply", 0), clip=("apply", 1), extra={"apply": apply}
    )
    graph["keep"] = node(
        "CheckpointSave",
        model=["apply", 0],
        clip=["apply", 1],
        vae=["checkpoint", 2],
        filename_prefix="core_paths",
    )
    base = executor.run(text_to_image(slim_checkpoint)).pictures[0].read_bytes()
    live = executor.run(graph).pictures[0].read_bytes()
    (saved,) = comfy.output_dir.glob("core_paths_*.safetensors")
    saved = saved.rename(comfy.checkpoints_dir / saved.name)
    again = executor.run(text_to_image(saved.name)).pictures[0].read_bytes()
    saved.unlink()
    assert again == live != base


FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 16,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}


@pytest.fixture(scope="module")
def flux(comfy):
    """A MODEL of Flux's structure with random weights, 64 wide."""
    from comfy import model_management, model_patcher, supported_models
    from comfy.ldm.flux.model import FluxParams

    options = dict(FLUX)
    if "txt_ids_dims" in FluxParams.__annotations__:  # ComfyUI: since 0.8
        options["txt_ids_dims"] = []
    config = supported_models.Flux(options)
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode():
        inner = config.get_model({})
        generator = torch.Generator().manual_seed(21)
        for weight in inner.diffusion_model.state_dict().values():
            weight.normal_(std=0.05, generator=generator)
    cpu = model_management.torch.device("cpu")
    return model_patcher.ModelPatcher(inner, load_device=cpu, offload_device=cpu)


def sliced_lora(path):
    """Write a diffusers LoRA on q, k, v (slices of fused weights) and the single block."""
    names = {
        "transformer.transformer_blocks.0.attn.to_q": (64, 64),
        "transformer.transformer_blocks.0.attn.to_v": (64, 64),
        "transformer.transformer_blocks.0.attn.add_k_proj": (64, 64),
        "transformer.single_transformer_blocks.0.attn.to_k": (64, 64),
        "transformer.single_transformer_blocks.0.proj_mlp": (256, 64),
        "transformer.single_transformer_blocks.0.proj_out": (64, 320),
    }
    generator = torch.Generator().manual_seed(22)
    tensors = {}
    for name, (out, columns) in names.items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(out, 4, generator=generator) / math.sqrt(64)
    save_file(tensors, path)
    return tensors


def test_slices_of_fused_weights_get_what_core_gives_them(comfy, flux):
    """ComfyUI keys q, k and v of Flux by (name, (dim, start, length))."""
    from comfy import sd

    tensors = sliced_lora(comfy.loras_dir / "flux.safetensors")
    with torch.inference_mode():
        core, _ = sd.load_lora_for_models(flux, None, dict(tensors), 0.7, 0.0)
    model, _ = applied(flux, "flux.safetensors", 0.7)
    wanted, got = patched_state(core), patched_state(model)
    base = patched_state(flux)
    changed = {key for key in base if not torch.equal(base[key], wanted[key])}
    assert len(changed) == 4  # img qkv, txt qkv, linear1, linear2
    assert {key for key in base if not torch.equal(base[key], got[key])} == changed
    for key in changed:
        bound = 2e-6 * (wanted[key] - base[key]).abs().max() + 2**-23 * base[key].abs().max()
        assert (got[key] - wanted[key]).abs().max() <= bound, key
