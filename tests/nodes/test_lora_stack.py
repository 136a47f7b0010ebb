"""LORA_STACK as other packs write and read it."""

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.stack import StackItem
from lora_workbench.lora_core.weighting import Weighting
from lora_workbench.nodes.lora_stack import StackEntry, read_stack


def lora(name):
    tensors = {"x.lora_down.weight": torch.ones(2, 6), "x.lora_up.weight": torch.ones(5, 2)}
    return lora_from_tensors(name, tensors)


def listed(name):
    """A LoRA of a file that the host lists under the name it was asked for."""
    found = lora(name)
    found.name = name
    return found


def entry(name="a", model=0.5, clip=0.25, weighting="", of=None):
    item = StackItem(of or lora(name), model, clip, Weighting.parse(weighting))
    return StackEntry(name, item)


def values(entries):
    return [tuple(entry) for entry in entries]


def test_an_entry_unpacks_as_exactly_three_values():
    """As Comfyroll and Lora Manager read it: ``for name, model, clip in stack``."""
    for name, model, clip in [entry()]:
        assert (name, model, clip) == ("a", 0.5, 0.25)
    assert entry()[0] == "a"
    assert len(entry()) == 3


def test_a_foreign_set_does_not_fold_two_entries_into_one():
    """Efficiency reads ``set(stack)``; another weighting makes another entry."""
    shared = lora("a")
    stack = [entry(of=shared), entry(of=shared, weighting="attn2=0"), entry(of=shared)]
    assert len(set(stack)) == 2
    assert stack[0] == stack[2]
    assert stack[0] != stack[1]
    other = lora_from_tensors("a", {"x.lora_down.weight": torch.ones(3, 6)})
    assert entry(of=other) != stack[0]  # another content under the same name


def test_loras_in_memory_are_told_apart_by_content():
    """Not by address: that of a freed LoRA may be given to the next one."""
    tensors = {"x.lora_down.weight": torch.ones(2, 6)}
    assert lora("a").file_key == lora("b").file_key
    assert lora("a").file_key != lora_from_tensors("a", tensors).file_key


def test_our_entries_come_back_with_their_weighting():
    stack = [entry(weighting="attn2=0")]
    entries, notes = read_stack(stack, lora)
    assert entries == stack
    assert notes == []


@pytest.mark.parametrize("nothing", [None, [], (), [None], [("None", 1.0, 1.0)], [("a", 0.0, 0.0)]])
def test_nothing_is_an_empty_stack(nothing):
    assert read_stack(nothing, lora)[0] == []


def test_foreign_forms_are_read():
    stack = [
        ("a", 0.5, 0.25),  # Efficiency, Comfyroll, Easy-Use, Lora Manager
        ["b", 0.5],  # two values: one strength for both
        [("c", 1, 0.5), ("d", 1.0, 1.0)],  # nested
        ("e", 0.5, 0.25, "auto", "all"),  # LoRA Optimizer, five values
        {"name": "f", "strength": 0.5, "clip_strength": 0.1},  # LoRA Optimizer, dict
        {"_merge_formula": "x"},
    ]
    entries, notes = read_stack(stack, listed)
    assert values(entries) == [
        ("a", 0.5, 0.25),
        ("b", 0.5, 0.5),
        ("c", 1.0, 0.5),
        ("d", 1.0, 1.0),
        ("e", 0.5, 0.25),
        ("f", 0.5, 0.1),
    ]
    assert any("after the third" in note for note in notes)
    assert any("without a file name" in note for note in notes)


def test_the_incoming_list_is_not_changed():
    stack = [("a", 0.5, 0.25)]
    entries, _ = read_stack(stack, lora)
    assert stack == [("a", 0.5, 0.25)]
    assert entries is not stack


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ([("a", "strong", 1.0)], "not a number"),
        ([("a", 1000.0, 1.0)], "out of range"),
        ([("<memory>/trained", 1.0, 1.0)], "dropped its tensors"),
        (5, "not an entry"),
    ],
)
def test_bad_stacks_are_named(stack, message):
    with pytest.raises(LoraError, match=message) as caught:
        read_stack(stack, lora)
    assert "Fix:" in str(caught.value)
