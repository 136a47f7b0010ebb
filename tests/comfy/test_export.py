"""ComfyUI's own loader changes its weights by what PEFT says was trained."""

import importlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from .comfy_source import REPOSITORY
from .test_converted_loras import wan  # noqa: F401
from .test_runtime import flux, random_model, relative_error  # noqa: F401

BOUND = 1e-6
CASES = 6
UNETS = {
    "sd15": {
        "model_channels": 32,
        "context_dim": 64,
        "num_heads": 8,
        "num_head_channels": -1,
        "use_linear_in_transformer": False,
        "transformer_depth": [1, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 0, 0],
        "channel_mult": [1, 2],
    },
    "sdxl": {
        "model_channels": 64,
        "context_dim": 128,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "transformer_depth": [0, 2],
        "transformer_depth_middle": 2,
        "transformer_depth_output": [0, 0, 2, 2],
        "channel_mult": [1, 1],
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    },
}
SHARED = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_res_blocks": [1, 1],
}
CLIP = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 1,
    "intermediate_size": 96,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
ENCODERS = {"te1": "clip_l", "te2": "clip_g"}


@pytest.fixture(autouse=True)
def inference_mode(comfy):
    """As in ComfyUI's executor."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def files(comfy):
    """The export matrix, written by a process that can import diffusers."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.peft_cases", comfy.loras_dir]
    subprocess.run(command, check=True, cwd=REPOSITORY)


def tiny_model(family):
    """A MODEL of ComfyUI's UNet in the structure of the trained one."""
    from comfy import model_base, model_patcher, supported_models

    config = supported_models.SD15({**SHARED, **UNETS[family]})
    config.set_inference_dtype(torch.float32, None)
    model = model_base.BaseModel(config, device=torch.device("cpu"))
    random_model(model)
    return model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def tiny_clip(family):
    """A CLIP with the encoders of the family; it loads LoRAs and encodes nothing."""
    from comfy import model_patcher, ops, sd
    from comfy.clip_model import CLIPTextModel

    encoders = nn.Module()
    for name in ("clip_l", "clip_g")[: 2 if family == "sdxl" else 1]:
        inner = nn.Module()
        inner.transformer = CLIPTextModel(CLIP, torch.float32, "cpu", ops.disable_weight_init)
        encoders.add_module(name, inner)
    random_model(encoders)
    clip = sd.CLIP(no_init=True)
    clip.cond_stage_model = encoders
    clip.patcher = model_patcher.ModelPatcher(encoders, torch.device("cpu"), torch.device("cpu"))
    clip.tokenizer = clip.layer_idx = clip.apply_hooks_to_conds = None
    clip.use_clip_schedule = False
    clip.tokenizer_options = {}
    return clip


def merged_deltas(patcher):
    """What core's patches change each weight by, in float64 from a base of zeros."""
    from comfy import lora

    deltas = {}
    for key, patches in patcher.patches.items():
        weight = patcher.model.state_dict()[key]
        zeros = torch.zeros(weight.shape)
        deltas[key] = lora.calculate_weight(patches, zeros, key)
    return deltas


def comfy_key(component, canonical):
    if component == "unet":
        return f"diffusion_model.{canonical}"
    return f"{ENCODERS[component]}.transformer.{canonical}"


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_lora_loader_makes_the_trained_deltas(comfy, files, family, case):
    import nodes

    name = f"{family}-{case}"
    model, clip = nodes.LoraLoader().load_lora(
        tiny_model(family), tiny_clip(family), f"{name}.safetensors", 1.0, 1.0
    )
    got = merged_deltas(model) | merged_deltas(clip.patcher)
    expected = {
        comfy_key(*key.split("/")): delta
        for key, delta in load_file(comfy.loras_dir / f"{name}-deltas.safetensors").items()
    }
    assert got.keys() == expected.keys()
    for key, delta in expected.items():
        assert relative_error(got[key].double(), delta) <= BOUND, key


def trained_linears(table, patcher, exporter, generator):
    """Random factors for every linear layer of a diffusion model."""
    modules = []
    for path, module in patcher.model.named_modules():
        if isinstance(module, nn.Linear) and path.startswith("diffusion_model."):
            (found,) = table.find(path)
            out, columns = found.weight.shape
            down = torch.randn(4, columns, generator=generator)
            up = torch.randn(out, 4, generator=generator)
            modules.append(exporter.TrainedModule(found.weight, down, up, 0.75))
    return modules


@pytest.mark.comfyui("0.30", "its Flux and Wan are others")
@pytest.mark.parametrize("architecture", ["flux", "wan"])
def test_a_model_that_only_comfyui_knows(comfy, request, architecture, generator):
    import nodes

    patcher = request.getfixturevalue(architecture)
    pack = comfy.pack.__name__
    table = importlib.import_module(f"{pack}.hosts.comfy.names").ComfyNames(patcher, None)
    exporter = importlib.import_module(f"{pack}.training.export")
    modules = trained_linears(table, patcher, exporter, generator)
    path = comfy.loras_dir / f"exported-{architecture}.safetensors"
    assert exporter.export(modules, table, path, dtype="fp32").worst_error <= BOUND
    model = nodes.LoraLoader().load_lora(patcher, None, path.name, 1.0, 0.0)[0]
    got = merged_deltas(model)
    assert got.keys() == {module.target.target_key for module in modules}
    for module in modules:
        delta = module.scale * module.up.double() @ module.down.double()
        assert relative_error(got[module.target.target_key].double(), delta) <= BOUND
