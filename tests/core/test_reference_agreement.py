"""The fused weights of PEFT, on modules of the shapes of SD1.5 and SDXL."""

import json

import peft
import pytest
import torch
from torch import nn

from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.stack import StackItem, make_plan

from .toy_model import one_weight_table

MODULES = {
    "SD1.5 attention 320": lambda: nn.Linear(320, 320),
    "SD1.5 feed-forward 320": lambda: nn.Linear(320, 2560),
    "SD1.5 cross attention 320": lambda: nn.Linear(768, 320, bias=False),
    "SD1.5 resnet convolution": lambda: nn.Conv2d(64, 32, 3, padding=1),
    "SD1.5 projection convolution": lambda: nn.Conv2d(320, 320, 1),
    "SDXL attention 640": lambda: nn.Linear(640, 640),
    "SDXL cross attention 1280": lambda: nn.Linear(2048, 1280, bias=False),
}


def injected(module, rank, generator):
    """The module with a LoRA by PEFT whose B is not zero; alpha 3/4 of the rank."""
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank * 0.75, target_modules=["m"], init_lora_weights=False
    )
    model = nn.ModuleDict({"m": module})
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.03)
    model = peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            size = (0.003 / rank**0.5) ** 0.5
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return model


@pytest.mark.parametrize("rank", [4, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
def test_merged_weights_are_those_of_peft_within_its_rounding(build, dtype, rank, generator):
    """PEFT's own error against float64 is measured; ours may add its bound, never more."""
    model = injected(build().to(dtype), rank, generator)
    layer = model["m"]
    base = layer.base_layer.weight.detach().clone()
    tensors = {
        f"base_model.model.{key}": value.detach().clone()
        for key, value in peft.get_peft_model_state_dict(model).items()
    }
    header = {"lora_adapter_metadata": json.dumps({"r": rank, "lora_alpha": rank * 0.75})}
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    delta = 0.75 * (up.detach().double().flatten(1) @ down.detach().double().flatten(1))
    exact = base.double() + delta.reshape(base.shape)
    layer.merge()
    theirs = layer.base_layer.weight.detach()

    table = one_weight_table("base_model.model.m", tuple(base.shape))
    plan = make_plan([StackItem(lora_from_tensors("x", tensors, header))], table)
    weights = {"base_model.model.m": base.clone()}
    MergeLedger(weights, "full").apply(plan)
    ours = weights["base_model.model.m"]

    rounding = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    own = rounding * exact.norm() + 1e-6 * delta.norm()
    assert (ours.double() - exact).norm() <= own
    assert (ours.double() - exact).norm() <= 1.01 * (theirs.double() - exact).norm()
    assert (ours.double() - theirs.double()).norm() <= own + (theirs.double() - exact).norm()
