"""What binding says of modules that it recognises and cannot apply; how errors are named."""

import pytest
import torch

from lora_workbench.lora_core.binding import UNSUPPORTED, USED, bind
from lora_workbench.lora_core.errors import (
    LoraError,
    NothingMatchedError,
    UnsupportedFormatError,
)
from lora_workbench.lora_core.formats.suffixes import split_key
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.models.target import ModuleTargets, Target
from lora_workbench.lora_core.weighting.selectors import UnknownSelectorError

COLUMNS = 16


class Table:
    """A model of one linear layer, ``img_in``."""

    components = frozenset({"unet"})

    def find(self, lora_key):
        target = Target("img_in.weight", (64, COLUMNS), "unet", "img_in.weight")
        return (ModuleTargets(target, None),) if lora_key == "img_in" else ()


def bound(**tensors):
    named = {key.replace("__", "."): value for key, value in tensors.items()}
    return bind(lora_from_tensors("some", named), Table())


def refusal(binding):
    with pytest.raises(UnsupportedFormatError) as caught:
        binding.check()
    return caught.value


def factors(columns):
    return {"img_in__lora_A__weight": torch.ones(2, columns), "img_in__lora_B__weight": ONES_64_2}


ONES_64_2 = torch.ones(64, 2)
KINDS = {
    "glora": ({f"img_in__{name}__weight": torch.ones(2, 2) for name in ("a1", "b1")}, True),
    "set_weight": ({"img_in__set_weight": torch.ones(64, COLUMNS)}, True),
    "peft-oft": ({"img_in__oft_R__weight": torch.ones(4, 6)}, False),
    "ia3": ({"img_in__ia3_l": torch.ones(64)}, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_comes_later_is_named_with_the_way_that_works_meanwhile(kind):
    tensors, comfyui_reads_it = KINDS[kind]
    error = refusal(bound(**tensors))
    assert kind in error.headline
    assert ("LoraLoader" in error.fix) == comfyui_reads_it


@pytest.mark.parametrize(
    ("tensors", "headline", "fix"),
    [
        ({"lora_controlnet": torch.ones(0)}, "Control-LoRA", "Load ControlNet Model"),
        ({"unet:0:up": ONES_64_2, "unet:0:down": ONES_64_2.T}, "numbers", "kohya's or diffusers'"),
    ],
)
def test_a_file_that_is_no_lora_of_modules_has_a_fix_of_its_own(tensors, headline, fix):
    error = refusal(bound(**tensors))
    assert headline in error.headline
    assert fix in error.fix


def test_a_module_of_this_model_that_comes_later_is_not_said_to_be_of_another_model():
    stranger = {f"other__{name}__weight": torch.ones(2, 2) for name in ("lora_A", "lora_B")}
    assert (
        "set_weight" in refusal(bound(img_in__set_weight=torch.ones(64, 16), **stranger)).headline
    )
    with pytest.raises(NothingMatchedError):
        bound(else__set_weight=torch.ones(64, 16), **stranger).check()


def test_a_weight_that_must_grow_is_named_and_one_that_has_grown_is_used():
    shape = torch.tensor([64, 32])
    wide = bound(**factors(32), img_in__reshape_weight=shape)
    assert "from [64, 16] to [64, 32] (reshape_weight)" in refusal(wide).headline
    assert {row.verdict for row in wide.rows()} == {UNSUPPORTED}
    fitting = bound(**factors(COLUMNS), img_in__reshape_weight=torch.tensor([64, COLUMNS]))
    fitting.check("error")
    assert {row.verdict for row in fitting.rows()} == {USED}


def test_a_larger_lora_without_that_mark_is_for_another_base():
    with pytest.raises(LoraError, match="another base"):
        bound(**factors(32)).check()


def test_a_norm_of_bfls_control_files_replaces_a_weight():
    name, role = split_key("single_blocks.0.norm.key_norm.scale")
    assert (name, role.kind, role.name) == ("single_blocks.0.norm.key_norm", "set", "set_weight")
    assert split_key("lora_unet_down.scale")[1].name == "scale_override"


def test_errors_have_one_short_module_wherever_they_are_defined():
    class AnotherError(LoraError):
        pass

    for kind in (LoraError, NothingMatchedError, UnknownSelectorError, AnotherError):
        assert kind.__module__ == "lora_workbench"
