"""Block names of targets, as block weightings use them."""

import pytest

from lora_workbench.lora_core.models import Target, block_of, table_for_base


def target(canonical: str, component: str = "unet") -> Target:
    return Target("any.key", (4, 4), component, canonical)


@pytest.mark.parametrize(
    ("canonical", "block"),
    [
        ("input_blocks.0.0.weight", "IN00"),
        ("input_blocks.11.0.out_layers.3.weight", "IN11"),
        ("middle_block.1.transformer_blocks.0.attn1.to_q.weight", "M00"),
        ("output_blocks.3.1.transformer_blocks.9.ff.net.2.bias", "OUT03"),
        ("double_blocks.3.img_attn.qkv.weight", "D03"),
        ("single_blocks.37.linear1.weight", "S37"),
        ("joint_blocks.3.x_block.attn.qkv.weight", "joint_blocks.03"),
        ("blocks.12.self_attn.q.weight", "blocks.12"),
        ("model.layers.5.mlp.up_proj.weight", "layers.05"),
    ],
)
def test_a_weight_inside_a_block_list_is_named_by_the_list_and_its_number(canonical, block):
    assert block_of(target(canonical)) == block


@pytest.mark.parametrize(
    "canonical",
    ["time_embed.0.weight", "label_emb.0.2.bias", "out.2.weight", "final_layer.linear.weight"],
)
def test_a_weight_outside_every_block_is_base(canonical):
    assert block_of(target(canonical)) == "BASE"


def test_a_text_encoder_is_base_although_it_has_layers():
    name = "text_model.encoder.layers.3.mlp.fc1.weight"

    assert block_of(target(name, "te1")) == "BASE"


def test_sd15_has_the_26_blocks_of_the_usual_block_weight_list():
    blocks = {block_of(each) for each in table_for_base("sd15").targets}

    numbered = {f"{half}{number:02}" for half in ("IN", "OUT") for number in range(12)}
    assert blocks == numbered | {"BASE", "M00"}
