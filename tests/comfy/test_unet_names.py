"""Our correspondence of ldm and diffusers names against ComfyUI's, for UNets of any depth."""

import pytest

from lora_workbench.lora_core.models.unet import (
    diffusers_modules_of_ldm,
    ldm_modules_of_diffusers,
)

DEPTHS = {
    "one level, one resnet": ([1], [1], [1], 1, [1, 1]),
    "two levels, attention below": ([1, 2], [1, 1], [0, 2], 2, [0, 0, 2, 2]),
    "two levels, attention above": ([1, 2], [1, 1], [1, 0], 1, [1, 1, 0, 0]),
    "three levels, three resnets": ([1, 1, 2], [3] * 3, [0] * 3 + [1] * 6, 1, [0] * 4 + [1] * 8),
}


def comfy_unet(multipliers, resnets, depths, middle_depth, output_depths):
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = {
        "channel_mult": multipliers,
        "num_res_blocks": resnets,
        "transformer_depth": depths,
        "transformer_depth_middle": middle_depth,
        "transformer_depth_output": output_depths,
    }
    unet = UNetModel(
        image_size=8,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        context_dim=16,
        num_heads=2,
        use_spatial_transformer=True,
        legacy=False,
        **{
            name: list(value) if isinstance(value, list) else value
            for name, value in config.items()
        },
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    return config, unet


@pytest.mark.parametrize("depths", DEPTHS.values(), ids=DEPTHS)
def test_the_walk_finds_comfyuis_pairs_from_either_side(depths, comfy):
    from comfy.utils import unet_to_diffusers

    config, unet = comfy_unet(*depths)
    stored = dict.fromkeys(key.rpartition(".")[0] for key in unet.state_dict())
    pairs = {
        theirs.rpartition(".")[0]: ours.rpartition(".")[0]
        for theirs, ours in unet_to_diffusers(config).items()
    }
    pairs = {theirs: ours for theirs, ours in pairs.items() if ours in stored}

    assert set(pairs.values()) == set(stored)
    assert diffusers_modules_of_ldm(stored) == {ours: theirs for theirs, ours in pairs.items()}
    assert ldm_modules_of_diffusers(pairs) == pairs
