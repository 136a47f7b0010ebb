"""What each program makes of an exported file, against PEFT's own merge of the live layers."""

import json
from copy import deepcopy

import pytest
import torch

from lora_workbench.lora_core.binding import bind
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.training.export import export, exported_tensors, named_modules
from lora_workbench.training.export.tensors import adapter_header, lora_config

from .peft_cases import CASES, FAMILIES, merged_delta, peft_layers, relative_error, trained

BOUND = 1e-6
# diffusers, PEFT and transformers warn of their own coming changes.
pytestmark = pytest.mark.filterwarnings("ignore")
matrix = pytest.mark.parametrize(
    ("family", "case"), [(family, case) for family in FAMILIES for case in CASES]
)


def deltas_by_path(live, component, name):
    prefix = f"{name}."
    return {
        target.target_key.removeprefix(prefix).removesuffix(".weight"): delta
        for target, delta in live.deltas.items()
        if target.component == component
    }


NAMES = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}


def assert_same_deltas(live, name, part):
    """The layers of one loaded component, each against the trained one."""
    expected = deltas_by_path(live, NAMES[name], name)
    bare = dict(live.clean[name].named_modules())
    layers = dict(peft_layers(part))
    assert layers.keys() == expected.keys()
    for path, layer in layers.items():
        (adapter,) = layer.scaling
        delta = merged_delta(layer, bare[path].weight, adapter)
        assert relative_error(delta, expected[path]) <= BOUND, path


@matrix
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_our_reader_finds_the_same_deltas(family, case, form, tmp_path):
    live = trained(family, case)
    result = export(live.modules, live.table, tmp_path / "lora.safetensors", form, "fp32")
    assert result.worst_error <= BOUND
    lora = load_lora(result.path)
    binding = bind(lora, live.table)
    assert binding.totals() == {"used": len(lora.file.tensors)}
    read = {bound.target: lora.adapter(bound.module, bound.part) for bound in binding.used()}
    assert read.keys() == live.deltas.keys()
    for target, delta in live.deltas.items():
        got = read[target].delta(torch.zeros(target.shape))
        assert relative_error(got, delta) <= BOUND, target


def pipeline(live):
    """A diffusers pipeline of the clean components; nothing is sampled."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    parts = deepcopy(live.clean)
    given = {"vae": None, "tokenizer": None, "scheduler": DDIMScheduler(), **parts}
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(
            tokenizer_2=None, force_zeros_for_empty_prompt=False, add_watermarker=False, **given
        )
    return StableDiffusionPipeline(
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **given
    )


@matrix
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_diffusers_pipeline_loads_the_same_deltas(family, case, form, tmp_path):
    live = trained(family, case)
    path = export(live.modules, live.table, tmp_path / "lora.safetensors", form, "fp32").path
    pipe = pipeline(live)
    pipe.load_lora_weights(tmp_path, weight_name=path.name, adapter_name="read")
    for name in live.parts:
        assert_same_deltas(live, name, getattr(pipe, name))


@matrix
def test_peft_loads_the_same_deltas(family, case, tmp_path):
    from peft import PeftModel

    live = trained(family, case)
    for name in live.parts:
        modules = live.component(NAMES[name])
        folder = export(modules, live.table, tmp_path / name, "peft", "fp32").path
        model = PeftModel.from_pretrained(deepcopy(live.clean[name]), folder)
        assert_same_deltas(live, name, model.base_model.model)


@pytest.mark.parametrize("case", CASES)
def test_a_peft_config_and_state_dict_can_be_set_by_hand(case, tmp_path):
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    live = trained("sd15", case)
    folder = export(live.component("unet"), live.table, tmp_path / "u", "peft", "fp32").path
    config = json.loads((folder / "adapter_config.json").read_text())
    part = deepcopy(live.clean["unet"])
    inject_adapter_in_model(LoraConfig(**config), part, "default")
    tensors = load_file(folder / "adapter_model.safetensors")
    plain = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
    result = set_peft_model_state_dict(part, plain, "default")
    assert not result.unexpected_keys
    assert_same_deltas(live, "unet", part)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_diffusers_pipeline_loads_dora_in_its_own_form(family, tmp_path):
    live = trained(family, "dora")
    named = named_modules(live.modules, live.table, "diffusers")
    tensors = exported_tensors(named, "diffusers", "fp32")
    write_safetensors(tmp_path / "lora.safetensors", tensors, adapter_header(named))
    pipe = pipeline(live)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="read")
    for name in live.parts:
        assert_same_deltas(live, name, getattr(pipe, name))


def test_peft_loads_dora():
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    live = trained("sd15", "dora")
    for name in live.parts:
        named = named_modules(live.component(NAMES[name]), live.table, "peft")
        plain = {key.removeprefix("base_model.model."): module for key, module in named.items()}
        part = deepcopy(live.clean[name])
        inject_adapter_in_model(LoraConfig(**lora_config(plain)), part, "default")
        set_peft_model_state_dict(part, exported_tensors(plain, "peft", "fp32"), "default")
        assert_same_deltas(live, name, part)
