"""Norms by block against dense deltas in float64."""

import math

import pytest
import torch

from lora_workbench.lora_core.binding import bind
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.models import table_for_base
from lora_workbench.lora_core.norms import block_norms
from lora_workbench.lora_core.stack import StackItem
from lora_workbench.lora_core.weighting import Weighting

from ..lora_files import lora_tensors, text_encoder_modules, unet_modules

BASES = ["sd15", "sdxl"]


def lora_and_deltas(base):
    """A LoRA of every 40th module, and (component, block, delta in float64) of each."""
    modules = [*unet_modules(base)[::40], *text_encoder_modules(base)[::40]]
    tensors = lora_tensors(modules, rank=3, alpha=6.0, dtype=torch.float32)
    lora = lora_from_tensors("random", tensors)
    binding = bind(lora, table_for_base(base))
    deltas = []
    for bound in binding.used():
        down, up = lora.adapter(bound.module, bound.part).tensors()
        deltas.append((bound.target, 2.0 * up.flatten(1).double() @ down.flatten(1).double()))
    return lora, binding, deltas


def block(target):
    """By hand, from ldm's names."""
    if target.component != "unet":
        return target.component
    name, number, *_ = target.canonical.split(".")
    if name == "middle_block":
        return "M00"
    short = {"input_blocks": "IN", "output_blocks": "OUT"}.get(name)
    return f"{short}{int(number):02}" if short else "BASE"


@pytest.mark.parametrize("base", BASES)
def test_a_blocks_norm_is_that_of_all_its_deltas(base):
    lora, binding, deltas = lora_and_deltas(base)
    squares = {}
    for target, delta in deltas:
        squares[block(target)] = squares.get(block(target), 0.0) + float(delta.square().sum())
    norms = block_norms(StackItem(lora), binding)
    assert norms.keys() == squares.keys()
    for name, square in squares.items():
        assert math.isclose(norms[name], math.sqrt(square), rel_tol=1e-6), name


def test_strengths_and_weighting_scale_it():
    lora, binding, _ = lora_and_deltas("sd15")
    whole = block_norms(StackItem(lora), binding)
    item = StackItem(lora, -2.0, 0.5, Weighting.parse("IN01=0.25"))
    for name, norm in block_norms(item, binding).items():
        factor = 0.5 if name == "te1" else 0.5 if name == "IN01" else 2.0
        assert math.isclose(norm, factor * whole[name], rel_tol=1e-6), name


def test_blocks_are_in_the_models_order_and_those_of_weight_0_are_left_out():
    lora, binding, _ = lora_and_deltas("sdxl")
    names = list(block_norms(StackItem(lora, 1.0, 0.0), binding))
    order = ["BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12))]
    assert names == [name for name in order if name in names]
    assert len(names) > 5


def test_two_modules_of_one_weight_add_up_before_the_norm_is_taken():
    """A plain difference and its opposite as factors: nothing is added."""
    module = unet_modules("sd15")[0]
    target = table_for_base("sd15").find(f"lora_unet_{module.path.replace('.', '_')}")[0].weight
    down, up = torch.randn(1, *module.shape[1:]), torch.randn(module.shape[0], 1)
    name = f"diffusion_model.{target.canonical.removesuffix('.weight')}"
    dense = -(up @ down.flatten(1)).reshape(module.shape)
    tensors = {
        f"lora_unet_{module.path.replace('.', '_')}.lora_down.weight": down,
        f"lora_unet_{module.path.replace('.', '_')}.lora_up.weight": up.reshape(
            -1, 1, *(1 for _ in module.shape[2:])
        ),
        f"{name}.diff": dense,
    }
    lora = lora_from_tensors("opposites", tensors)
    binding = bind(lora, table_for_base("sd15"))
    assert len(binding.used()) == 2
    (norm,) = block_norms(StackItem(lora), binding).values()
    assert norm < 1e-5 * float(dense.norm())
