"""Presets with changes: what is left out of them, what is refused, and what they cost."""

import pytest

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.presets import PRESETS
from lora_workbench.training.settings_text import compared, explained, settings_of

from .runs import tiny_trainable


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr", "oft"])
def test_every_preset_goes_with_every_method(preset, method):
    """What the method does not read is left out of the preset."""
    config = settings_of(preset, f'adapter.method = "{method}"')
    assert config.adapter.method == method
    assert (config.adapter.alpha is None) == (method == "oft")
    assert ("adapter.alpha" in explained(preset, config)) == (method != "oft")


def test_full_matrices_need_no_rank():
    config = settings_of("character", 'adapter.method = "lokr"\nadapter.full_matrix = true')
    assert (config.adapter.rank, config.adapter.alpha) == (16, None)
    assert "adapter.rank" not in explained("character", config)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ('adapter.method = "oft"\nadapter.alpha = 4.0', "adapter.alpha"),
        ('adapter.method = "loha"\nadapter.start = "pissa"', "adapter.start"),
        ("adapter.factor = 8", "adapter.factor"),
        ('optimizer.name = "adam"\noptimizer.weight_decay = 0.1', "optimizer.weight_decay"),
        ("preview.steps = 30", "preview.steps"),
    ],
)
def test_a_change_that_would_do_nothing_is_refused(overrides, name):
    with pytest.raises(LoraError, match=f"{name} would do nothing"):
        settings_of("style", overrides)


@pytest.mark.parametrize(("preset", "ratio"), [("style", 1), ("character", 0.5), ("quick look", 1)])
def test_another_rank_keeps_the_scale_of_the_preset(preset, ratio):
    adapter = settings_of(preset, "adapter.rank = 4").adapter
    assert (adapter.rank, adapter.alpha) == (4, 4 * ratio)
    assert settings_of(preset, "adapter.rank = 4\nadapter.alpha = 3.0").adapter.alpha == 3


def test_a_preset_that_does_not_fit_the_model_is_told_beside_the_others():
    """As "character", which trains text encoders, on a model without any."""
    weights = {"unet": tiny_trainable().weights["unet"]}
    style, character = compared(settings_of("style", ""), weights, ["character"])
    assert "modules" in style[1]
    assert character[1].startswith("not on this model: text_encoder:")


def test_the_default_targets_are_those_that_the_model_has():
    weights = tiny_trainable().weights["unet"]
    without = {"unet": {k: v for k, v in weights.items() if "proj_" not in k}}
    ((_, style),) = compared(settings_of("style", ""), without, [])
    assert "modules" in style
    mine = settings_of("style", 'adapter.targets = ["attn", "proj"]')
    assert "'proj' names no weight" in compared(mine, without, [])[0][1]


def test_the_costs_are_those_of_the_method():
    weights = tiny_trainable().weights
    (_, lora), (_, style) = compared(settings_of("style", ""), weights, ["style"])
    (_, loha), _ = compared(settings_of("style", 'adapter.method = "loha"'), weights, ["style"])
    assert lora == style
    count = [int(costs.split()[2].replace(",", "")) for costs in (lora, loha)]
    assert count[1] == 2 * count[0]
