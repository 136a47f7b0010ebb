"""LORA_MODEL as core's nodes see it, and its way back into a stack."""

import copy
import json

import pytest
import torch

from lora_workbench.hosts import LoraChoice
from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.nodes.add import LoraWorkbenchAdd
from lora_workbench.nodes.lora_model import LoraModel, lora_of

TENSORS = {"x.lora_down.weight": torch.ones(2, 6), "x.lora_up.weight": torch.ones(5, 2)}


@pytest.fixture
def node(host):
    return LoraWorkbenchAdd.bound_to(host)()


def test_a_dict_that_nobody_wrote_into_gives_the_lora_back():
    lora = lora_from_tensors("a", TENSORS)
    model = LoraModel(lora)
    assert dict(model).keys() == {**model}.keys() == TENSORS.keys()
    assert lora_of(model) is lora


@pytest.mark.parametrize(
    "write",
    [
        lambda model: model.__setitem__("x.lora_up.weight", torch.zeros(5, 2)),
        lambda model: model.update({"x.lora_up.weight": torch.zeros(5, 2)}),
        lambda model: model.__delitem__("x.lora_up.weight"),
        lambda model: model.pop("x.lora_up.weight"),
        lambda model: model.pop("gone", None),
    ],
)
def test_what_another_node_wrote_into_it_counts(write):
    """As core's nodes do with a state dict; the parsed LoRA would hide it."""
    model = LoraModel(lora_from_tensors("a", TENSORS))
    plain = dict(TENSORS)
    write(model)
    write(plain)
    assert dict(model).keys() == plain.keys()
    assert lora_of(model).sha256 == lora_from_tensors("b", plain).sha256


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, dict, LoraModel.copy])
def test_a_copy_holds_the_same_tensors(host, copied):
    host.write("a.safetensors")
    lora = host.load_lora(LoraChoice("a"))
    assert lora_of(copied(LoraModel(lora))).modules == lora.modules


@pytest.mark.parametrize(
    ("stored", "shape", "expected"),
    [
        ("x.lora_magnitude_vector", (5,), (5, 1)),
        ("x.dora_scale", (5,), (5, 1)),
        ("x.dora_scale", (6,), (1, 6)),
        ("x.dora_scale", (1, 6), (1, 6)),
    ],
)
def test_core_gets_the_magnitudes_of_a_dora_in_its_own_form(stored, shape, expected):
    """ComfyUI reads ``dora_scale`` alone, and spreads a flat one over the wrong dimension."""
    numbers = torch.arange(1.0, 1 + max(shape)).reshape(shape)
    model = LoraModel(lora_from_tensors("a", {**TENSORS, stored: numbers}))
    assert model.keys() == {*TENSORS, "x.dora_scale"}
    assert torch.equal(model["x.dora_scale"], numbers.reshape(expected))
    assert lora_of(dict(model)).modules["x"].parts[0].axis == expected.index(1) ^ 1


def test_core_gets_other_kinds_under_their_own_suffixes():
    shapes = {"hada_w1_a": (5, 2), "hada_w1_b": (2, 6), "hada_w2_a": (5, 2), "hada_w2_b": (2, 6)}
    tensors = {f"unet.down_blocks.0.x.{key}": torch.ones(shape) for key, shape in shapes.items()}
    tensors["unet.down_blocks.0.x.dora_scale"] = torch.ones(5, 1)
    model = LoraModel(lora_from_tensors("a", tensors))
    assert model.keys() == {f"lora_unet_down_blocks_0_x.{key}" for key in (*shapes, "dora_scale")}
    (module,) = lora_of(dict(model)).modules.values()
    assert (module.kind, module.problem) == ("loha+dora", None)


def test_the_scale_that_peft_gives_two_full_matrices_is_in_the_first_one_for_core():
    """Core and LyCORIS read no alpha beside them."""
    config = {"peft_type": "LOKR", "r": 8, "alpha": 4}
    tensors = {"x.lokr_w1": torch.ones(2, 2), "x.lokr_w2": torch.ones(3, 3)}
    header = {"lora_adapter_metadata": json.dumps(config)}
    lora = lora_from_tensors("a", tensors, header)
    assert lora.modules["x"].scale == 0.5
    again = lora_of(dict(LoraModel(lora)))
    assert again.modules["x"].scale == 1.0
    (part,) = again.modules["x"].parts
    assert again.adapter(again.modules["x"], part).delta(torch.zeros(6, 6)).unique().item() == 0.5


def test_core_s_plain_dict_is_named_in_memory(node):
    """What TrainLoraNode gives."""
    ((entry,),) = node.execute(TENSORS, " my style ", 0.8, 0.4)
    assert tuple(entry) == ("<memory>/my style", 0.8, 0.4)
    assert entry.item.lora.name == "<memory>/my style"
    ((entry,),) = node.execute(TENSORS, "", 0.8, 0.4)
    assert tuple(entry) == ("<memory>/lora_model", 0.8, 0.4)


def test_a_lora_of_a_file_keeps_the_file_unless_it_is_renamed(host, node):
    named = host.write("style/a.safetensors")
    model = LoraModel(host.load_lora(LoraChoice("a")))
    ((entry,),) = node.execute(model, "", 1.0, 1.0)
    assert tuple(entry) == (named, 1.0, 1.0)
    ((entry,),) = node.execute(model, "mine", 1.0, 1.0)
    assert tuple(entry) == ("<memory>/mine", 1.0, 1.0)
    assert entry.item.lora is model.lora
    model["x.lora_up.weight"] = torch.zeros(5, 2)
    ((entry,),) = node.execute(model, "", 1.0, 1.0)
    assert entry[0] == "<memory>/lora_model"  # no longer what the file holds


def test_it_comes_after_the_incoming_stack_which_is_not_changed(host, node):
    host.write("a.safetensors")
    incoming = [("a", 0.5, 0.5)]
    (stack,) = node.execute(TENSORS, "b", 1.0, 1.0, lora_stack=incoming)
    assert [entry[0] for entry in stack] == ["a.safetensors", "<memory>/b"]
    assert incoming == [("a", 0.5, 0.5)]
    assert [e[0] for e in node.execute(TENSORS, "b", 0.0, 0.0, stack)[0]] == [
        "a.safetensors",
        "<memory>/b",
    ]


def test_something_else_is_named(node):
    with pytest.raises(LoraError, match="not a dict of tensors"):
        node.execute(["a"], "", 1.0, 1.0)
