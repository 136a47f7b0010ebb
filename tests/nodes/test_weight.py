"""Weight LoRA: which entries it takes, and how its rules join those that are there."""

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.models.target import Target
from lora_workbench.lora_core.stack import StackItem
from lora_workbench.lora_core.weighting import Weighting
from lora_workbench.nodes.lora_stack import StackEntry
from lora_workbench.nodes.weight import LoraWorkbenchWeight, chosen, combined

NAMES = ["style/Ink v1.2.safetensors", "detail.safetensors", "style\\oil.pt", "<memory>/trained"]


def stack(*weightings):
    """Entries called a, b, c, ... with these weightings."""
    lora = lora_from_tensors("a", {"x.lora_down.weight": torch.ones(2, 6)})
    return [
        StackEntry(f"{letter}.safetensors", StackItem(lora, 0.5, 0.25, Weighting.parse(text)))
        for letter, text in zip("abcdef", weightings, strict=False)
    ]


def weightings(entries):
    return [entry.item.weighting.to_text() for entry in entries]


@pytest.mark.parametrize(
    ("which", "positions"),
    [
        ("", [1, 2, 3, 4]),
        (" , \n", [1, 2, 3, 4]),
        ("1", [1]),
        ("1, 3-4", [1, 3, 4]),
        ("2\n2-3", [2, 3]),
        ("detail", [2]),
        ("DETAIL.safetensors, trained", [2, 4]),
        ("ink v1.2", [1]),
        ("style/oil", [3]),
        ("style\\ink v1.2.safetensors", [1]),
        ("style/*", [1, 3]),
        ("*i*", [1, 2, 3, 4]),
        ("<memory>/trained", [4]),
    ],
)
def test_a_filter_names_entries_by_position_name_or_glob(which, positions):
    assert chosen(which, NAMES) == {position - 1 for position in positions}


@pytest.mark.parametrize("which", ["5", "0", "3-5", "3-2", "ink", "etail", "1, x*", "1-"])
def test_a_filter_that_names_nothing_lists_the_entries(which):
    with pytest.raises(LoraError, match="names no LoRA") as caught:
        chosen(which, NAMES)
    for number, name in enumerate(NAMES, 1):
        assert f"{number}: {name}" in str(caught.value)


def test_a_name_with_brackets_is_found_as_it_is_written():
    assert chosen("[x] a", ["[x] a.safetensors"]) == {0}


def test_new_rules_come_after_those_of_the_entry(host):
    (entries,) = LoraWorkbenchWeight.bound_to(host)().execute(
        stack("attn2=0", "", "IN04=0.5"), "IN04-08=0.2", "1, 3"
    )
    assert weightings(entries) == ["attn2=0, IN04-08=0.2", "", "IN04=0.5, IN04-08=0.2"]


def target(canonical):
    return Target(f"diffusion_model.{canonical}", (4, 4), "unet", canonical)


@pytest.mark.parametrize(
    ("own", "later", "factors"),
    [
        ("", "IN04=0.5", [0.5, 1.0]),
        ("IN04=0.5", "", [0.5, 1.0]),
        ("IN04=0.5", "IN04=0.2", [0.2, 1.0]),
        ("IN04=0.5", "attn=0.2", [0.2, 0.2]),
        ("default=0, IN04=0.5", "OUT04=0.3", [0.5, 0.3]),
        ("attn=0.2", "default=0, IN04=1", [1.0, 0.0]),
        ("attn=0.2", "0,1,0,0,0,0,0,0,0,0,0,0", [1.0, 0.0]),
        ("attn=0.2", "*=1", [1.0, 1.0]),
    ],
)
def test_where_the_later_weighting_names_a_weight_it_decides(own, later, factors):
    """A default other than 1 names every weight."""
    both = combined(Weighting.parse(own), Weighting.parse(later))
    attention = ["input_blocks.4.1.attn1.to_q.weight", "output_blocks.4.1.attn1.to_q.weight"]
    assert [both.factor(target(name)) for name in attention] == factors


def test_the_incoming_stack_is_not_changed(host):
    incoming = stack("attn2=0", "")
    before = list(incoming)
    (entries,) = LoraWorkbenchWeight.bound_to(host)().execute(incoming, "ff=0", "")
    assert incoming == before
    assert weightings(incoming) == ["attn2=0", ""]
    assert list(map(tuple, entries)) == list(map(tuple, incoming))


def test_plain_tuples_of_other_packs_are_loaded_to_carry_a_weighting(host):
    named = host.write("style/ink.safetensors")
    host.write("b.safetensors")
    incoming = [("ink", 0.5, 0.25), ("b.safetensors", 1.0, 1.0)]
    (entries,) = LoraWorkbenchWeight.bound_to(host)().execute(incoming, "ff=0", "ink")
    assert list(map(tuple, entries)) == [(named, 0.5, 0.25), ("b.safetensors", 1.0, 1.0)]
    assert weightings(entries) == ["ff=0", ""]


def test_unreadable_rules_are_refused_when_the_graph_is_queued():
    assert "attn3" in LoraWorkbenchWeight.VALIDATE_INPUTS(weighting="attn3=0")
    assert LoraWorkbenchWeight.VALIDATE_INPUTS(weighting="attn2=0") is True
    assert LoraWorkbenchWeight.VALIDATE_INPUTS() is True
