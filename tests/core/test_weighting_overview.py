"""What a weighting can name in a model, and the factors it gives there."""

import pytest

from lora_workbench.lora_core.models import Target, table_for_base
from lora_workbench.lora_core.weighting import Weighting, blocks_of_model, factors_by_block


def target(component, canonical):
    return Target(canonical, (2, 3), component, canonical)


FEW = [
    target("unet", "output_blocks.10.0.skip_connection.weight"),
    target("unet", "output_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"),
    target("unet", "output_blocks.2.1.transformer_blocks.0.ff.net.2.weight"),
    target("te2", "text_model.encoder.layers.0.self_attn.k_proj.weight"),
    target("unet", "input_blocks.1.0.in_layers.2.weight"),
    target("unet", "time_embed.0.weight"),
]


def test_blocks_are_in_the_models_order_whatever_the_files_order():
    blocks = blocks_of_model(FEW)
    counts = {name: len(targets) for name, targets in blocks.targets.items()}
    assert list(counts.items()) == [("BASE", 2), ("IN01", 1), ("OUT02", 2), ("OUT10", 1)]
    long = [target("unet", f"blocks.{n}.ff.a.weight") for n in (100, 99, 7)]
    assert list(blocks_of_model(long).targets) == ["blocks.07", "blocks.99", "blocks.100"]


def test_parts_are_those_that_name_something():
    parts = blocks_of_model(FEW).parts
    assert parts == {
        "te": 1,
        "te2": 1,
        "unet": 5,
        "attn": 2,
        "attn1": 1,
        "attn2": 1,
        "k": 2,
        "ff": 1,
        "conv": 2,
        "time": 1,
    }


def test_factors_are_those_of_all_rules_together():
    weighting = Weighting.parse("default=2, OUT02=0.5, attn2=0")
    found = factors_by_block(weighting, blocks_of_model(FEW))
    assert {name: (f.least, f.mean, f.most) for name, f in found.items()} == {
        "BASE": (2, 2, 2),
        "IN01": (2, 2, 2),
        "OUT02": (0, 0.25, 0.5),
        "OUT10": (2, 2, 2),
    }


@pytest.mark.parametrize(("base", "last_in", "last_out"), [("sd15", 11, 11), ("sdxl", 8, 8)])
def test_blocks_of_the_known_bases(base, last_in, last_out):
    found = list(blocks_of_model(table_for_base(base).targets).targets)
    inputs = [f"IN{number:02}" for number in range(last_in + 1)]
    assert found == ["BASE", *inputs, "M00", *(f"OUT{n:02}" for n in range(last_out + 1))]
