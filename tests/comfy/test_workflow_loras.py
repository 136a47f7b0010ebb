"""Published workflows with core's LoRA loaders: one Apply in place of each chain, equal weights."""

import asyncio
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from lora_workbench.headless.workflow.convert import to_api

from . import torchvision_stub
from .checkpoints import SLIM, lora_targets, write_lora
from .test_published_files import BOUND
from .test_runtime import FLUX, random_model

LOADERS = ("LoraLoader", "LoraLoaderModelOnly")
# The workflow, the base that its chains start from, and how many loaders each of them has.
ON_SD15 = {
    "ComfyUI_examples__lora": (1,),
    "ComfyUI_examples__lora_multiple": (2,),
    "ComfyUI_examples__lcm_basic_example": (1,),
}
ON_TRANSFORMERS = {
    "templates__basic_switch_node": ("z_image", (1,)),
    "templates__flux_depth_lora_example": ("flux", (1,)),
    "templates__image_anima_base_v1": ("anima", (1,)),
    "templates__video_wan2_2_14B_t2v": ("wan", (1, 1)),
}
# What ComfyUI registers beside its base set, as far as these workflows use it; 0.30 has all.
# The first comes before those that import it.
EXTRAS = (
    *("latent", "custom_sampler", "flux", "hunyuan", "ip2p", "logic", "lotus", "math"),
    *(
        "model_advanced",
        "post_processing",
        "preview_any",
        "primitive",
        "resolution",
        "sd3",
        "video",
    ),
)


@pytest.fixture(scope="module")
def object_info(comfy):
    """What GET /object_info answers for the nodes of these workflows."""
    import nodes

    with pytest.MonkeyPatch.context() as patch:
        # One of these files imports kornia, for other nodes than those of the workflows.
        patch.setattr(torchvision_stub, "STUBBED", torchvision_stub.STUBBED | {"kornia"})
        for name in EXTRAS:
            file = comfy.root / "comfy_extras" / f"nodes_{name}.py"
            if file.is_file():
                asyncio.run(nodes.load_custom_node(str(file), module_parent="comfy_extras"))
    return {name: comfy.object_info(name) for name in nodes.NODE_CLASS_MAPPINGS}


@pytest.fixture(autouse=True)
def inference_mode(comfy):
    """As in ComfyUI's executor."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def sd15(slim_checkpoint):
    """MODEL and CLIP in place of the workflows' checkpoints."""
    import nodes

    with torch.inference_mode():
        return nodes.CheckpointLoaderSimple().load_checkpoint(slim_checkpoint)[:2]


def chains_of(name, shared_data, object_info):
    """The loaders' inputs of each chain of a workflow, from its base on, first applied first."""
    workflow = json.loads((shared_data / "workflows" / f"{name}.ui.json").read_text())
    loaders = {
        key: entry["inputs"]
        for key, entry in to_api(workflow, object_info).items()
        if entry["class_type"] in LOADERS
    }
    following = {inputs["model"][0]: key for key, inputs in loaders.items()}
    assert len(following) == len(loaders)  # no chain branches
    chains = []
    for start in sorted(following.keys() - loaders.keys()):
        chain = []
        while start in following:
            start = following[start]
            chain.append(loaders[start])
        chains.append(chain)
    return chains


def core_chain(model, clip, chain):
    import nodes

    for inputs in chain:
        name, strength = inputs["lora_name"], inputs["strength_model"]
        if clip is None:
            (model,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, strength)
        else:
            strengths = strength, inputs["strength_clip"]
            model, clip = nodes.LoraLoader().load_lora(model, clip, name, *strengths)
    return model, clip


def one_apply(model, clip, chain):
    import nodes

    rows = [
        {
            "name": inputs["lora_name"],
            "model": inputs["strength_model"],
            "clip": inputs.get("strength_clip", 0.0),
        }
        for inputs in chain
    ]
    apply = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchApply"]()
    return apply.execute(model, json.dumps(rows), clip=clip)["result"][:2]


def patchers_of(model, clip):
    return (model,) if clip is None else (model, clip.patcher)


def patched_weights(model, clip):
    """Load as a sampler does; return a copy of each patched weight, then unload."""
    from comfy import model_management

    copies = {}
    for patcher in patchers_of(model, clip):
        model_management.load_models_gpu([patcher])
        state = patcher.model.state_dict()
        copies |= {key: state[key].clone() for key in patcher.patches}
    model_management.unload_all_models()
    return copies


def assert_one_apply_equals_the_loaders(model, clip, chain):
    """Equal but for the rounding of core's second and later LoRA."""
    core = patched_weights(*core_chain(model, clip, chain))
    ours = patched_weights(*one_apply(model, clip, chain))
    base = {}
    for patcher in patchers_of(model, clip):
        base |= patcher.model.state_dict()
    assert ours.keys() == core.keys() != set()
    for key, expected in core.items():
        delta = (expected - base[key]).abs().max()
        assert delta > 0, key
        ulp = torch.nextafter(expected.abs(), torch.tensor(torch.inf)) - expected.abs()
        assert bool(((ours[key] - expected).abs() <= BOUND * delta + ulp).all()), key


@pytest.mark.parametrize("name", ON_SD15)
def test_one_apply_in_place_of_the_loaders_gives_equal_weights(
    comfy, shared_data, object_info, sd15, name
):
    chains = chains_of(name, shared_data, object_info)
    assert tuple(map(len, chains)) == ON_SD15[name]
    targets = lora_targets(SLIM)
    for chain in chains:
        for seed, inputs in enumerate(chain):
            write_lora(comfy.loras_dir / inputs["lora_name"], targets, rank=4, seed=seed)
        assert_one_apply_equals_the_loaders(*sd15, chain)


@pytest.mark.comfyui("0.30", "it lacks nodes of these workflows")
@pytest.mark.parametrize("name", ON_TRANSFORMERS)
def test_one_apply_in_place_of_model_only_loaders_gives_equal_weights(
    comfy, shared_data, object_info, monkeypatch, name
):
    base, lengths = ON_TRANSFORMERS[name]
    chains = chains_of(name, shared_data, object_info)
    assert tuple(map(len, chains)) == lengths
    model = tiny_transformer(base, monkeypatch)
    for chain in chains:
        for seed, inputs in enumerate(chain):
            write_generic_lora(comfy.loras_dir / inputs["lora_name"], model, PREFIXES[base], seed)
        assert_one_apply_equals_the_loaders(model, None, chain)


@pytest.mark.comfyui("0.30", "its Lumina, Anima and Wan are others")
@pytest.mark.parametrize("base", ["z_image", "flux", "anima", "wan"])
def test_one_apply_in_place_of_a_chain_on_a_tiny_transformer_gives_equal_weights(
    comfy, monkeypatch, base
):
    """What the workflows show with one LoRA each, with three, where the workflows are not here."""
    model = tiny_transformer(base, monkeypatch)
    chain = []
    for seed, strength in enumerate((1.0, -0.5, 0.25)):
        name = f"chain_{base}_{seed}.safetensors"
        write_generic_lora(comfy.loras_dir / name, model, PREFIXES[base], seed)
        chain.append({"lora_name": name, "strength_model": strength})
    assert_one_apply_equals_the_loaders(model, None, chain)


def test_every_published_workflow_with_a_lora_loader_is_in_a_list(shared_data):
    listed = {*ON_SD15, *ON_TRANSFORMERS}
    found = {
        path.name.removesuffix(".ui.json")
        for path in (shared_data / "workflows").glob("*.ui.json")
        if any(f'"{loader}"' in path.read_text() for loader in LOADERS)
    }
    assert found == listed


# Names of published files for each base: slices of its fused projections, or its own names.
PREFIXES = {
    "z_image": "diffusion_model.",
    "flux": "transformer.",
    "anima": "diffusion_model.",
    "wan": "diffusion_model.",
}
Z_IMAGE = {
    "image_model": "lumina2",
    "in_channels": 4,
    "dim": 48,
    "cap_feat_dim": 24,
    "n_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [8, 8, 8],
    "axes_lens": [64, 64, 64],
    "ffn_dim_multiplier": 8 / 3,
    "multiple_of": 8,
    "qk_norm": True,
    "z_image_modulation": True,
}
ANIMA = {
    "image_model": "anima",
    "max_img_h": 16,
    "max_img_w": 16,
    "max_frames": 4,
    "in_channels": 4,
    "out_channels": 4,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 48,
    "num_blocks": 1,
    "num_heads": 2,
    "crossattn_emb_channels": 32,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 4,
    "out_dim": 4,
    "dim": 48,
    "ffn_dim": 96,
    "freq_dim": 16,
    "text_dim": 24,
    "num_heads": 2,
    "num_layers": 1,
}


def tiny_transformer(base, monkeypatch):
    """A MODEL of ComfyUI's own class for a base, one block deep, with random weights."""
    from comfy import model_base, model_patcher, supported_models
    from comfy.ldm.anima import model as anima

    def no_adapter(**_):
        """In place of Anima's text adapter, whose size is fixed at 130 M weights."""
        return torch.nn.Identity()

    monkeypatch.setattr(anima, "LLMAdapter", no_adapter)
    config_class, model_class, settings = {
        "z_image": (supported_models.ZImage, model_base.Lumina2, Z_IMAGE),
        "flux": (supported_models.Flux, model_base.Flux, FLUX),
        "anima": (supported_models.Anima, model_base.Anima, ANIMA),
        "wan": (supported_models.WAN21_T2V, model_base.WAN21, WAN),
    }[base]
    config = config_class(dict(settings))
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = model_class(config, device=cpu)
    random_model(model)
    return model_patcher.ModelPatcher(model, cpu, cpu)


def write_generic_lora(path, model, prefix, seed):
    """A LoRA for every matrix and kernel, and every slice of one that has a name of its own."""
    from comfy import lora

    shapes = {key: tuple(value.shape) for key, value in model.model.state_dict().items()}
    found = {}  # the last name of each whole weight or slice
    for name, target in lora.model_lora_keys_unet(model.model, {}).items():
        key, *rest = (target,) if isinstance(target, str) else target
        if name.startswith(prefix) and key.endswith(".weight") and len(shapes.get(key, ())) >= 2:
            found[key, rest[0] if rest else None] = name
    sliced = {key for key, offset in found if offset is not None}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for (key, offset), name in found.items():
        if offset is None and key in sliced:
            continue
        out, *columns = shapes[key]
        out = out if offset is None else offset[2]
        down = torch.randn(4, *columns, generator=generator) / math.prod(columns) ** 0.5
        up = torch.randn(out, 4, *(1 for _ in columns[1:]), generator=generator) * 0.05
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down.half(), up.half()
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
