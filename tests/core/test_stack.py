"""A stack as a plan: order, sums, zeros and what makes two files the same."""

import itertools
import json
import shutil

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import load_lora, lora_from_tensors
from lora_workbench.lora_core.patching.copies import patched_tensors
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.stack import EMPTY_PLAN, StackItem, checked_strength, make_plan
from lora_workbench.lora_core.weighting import Weighting

from .toy_model import (
    TOY_TABLE,
    all_bits,
    bits,
    normal,
    one_weight_table,
    same_bits,
    thin_tensors,
    toy_loras,
    toy_plan,
    toy_weights,
)


def merged(plan, weights):
    return {key: bits(tensor) for key, tensor in patched_tensors(plan, weights)}


def save(lora, path):
    tensors = lora.file.read_many(lora.file.tensors)
    write_safetensors(path, tensors)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_order_of_a_stack_changes_no_bit(dtype, generator, tmp_path):
    """Four files, one of them a copy of another under a second name."""
    weights, _ = toy_weights(generator, dtype)
    a, b, c, _ = toy_loras(generator)
    paths = [save(lora, tmp_path / f"{i}.safetensors") for i, lora in enumerate((a, b, c))]
    paths.append(tmp_path / "twin.safetensors")
    shutil.copy(paths[0], paths[3])
    items = [
        StackItem(load_lora(path), strength)
        for path, strength in zip(paths, (0.9, -0.4, 1.3, 0.35), strict=True)
    ]
    expected, ledger = merged(make_plan(items, TOY_TABLE), weights), MergeLedger(weights)
    ledger.apply(make_plan(items, TOY_TABLE))
    for order in itertools.permutations(items):
        plan = make_plan(order, TOY_TABLE)
        assert ledger.apply(plan) == ()
        copies = {key: bits(weights[key]) for key in plan.terms}
        assert same_bits(copies, expected)
    ledger.unmerge()
    for order in itertools.permutations(items):
        assert same_bits(merged(make_plan(order, TOY_TABLE), weights), expected)


def test_equal_files_are_one_term(generator, tmp_path):
    first = save(toy_loras(generator)[0], tmp_path / "a.safetensors")
    second = shutil.copy(first, tmp_path / "b.safetensors")
    plan = make_plan([StackItem(load_lora(first)), StackItem(load_lora(second), 0.5)], TOY_TABLE)
    assert [len(terms) for terms in plan.terms.values()] == [1] * len(plan.terms)


def test_one_lora_twice_is_one_lora_at_the_sum_of_its_strengths(generator):
    weights, _ = toy_weights(generator)
    lora, *_ = toy_loras(generator)
    twice = merged(toy_plan((lora, 0.5), (lora, 0.75)), weights)
    assert same_bits(twice, merged(toy_plan((lora, 1.25)), weights))


def test_strengths_that_cancel_change_nothing(generator):
    lora, *_ = toy_loras(generator)
    assert toy_plan((lora, 0.7), (lora, -0.7)).terms == {}


def test_a_negative_strength_takes_the_delta_off(generator):
    lora = lora_from_tensors("x", {"m.diff": torch.tensor([[1.0, 2.0]])})
    plan = make_plan([StackItem(lora, -0.5)], one_weight_table("m", (1, 2)))
    ((_, patched),) = patched_tensors(plan, {"m": torch.tensor([[10.0, 10.0]])})
    assert patched.tolist() == [[9.5, 9.0]]


def test_ranks_may_differ(generator):
    """By hand: rank 1 adds 1 to every weight, rank 2 adds 1 + 1."""
    table, stack = one_weight_table("m", (2, 3)), []
    for rank in (1, 2):
        tensors = {
            "m.lora_down.weight": torch.ones(rank, 3),
            "m.lora_up.weight": torch.ones(2, rank),
        }
        stack.append(StackItem(lora_from_tensors(str(rank), tensors)))
    ((_, patched),) = patched_tensors(make_plan(stack, table), {"m": torch.zeros(2, 3)})
    assert patched.tolist() == [[3.0] * 3] * 2


def test_strength_0_reads_no_file_and_plans_nothing(generator, tmp_path):
    path = save(toy_loras(generator)[0], tmp_path / "a.safetensors")
    lora = load_lora(path)
    path.unlink()
    plan = make_plan([StackItem(lora, 0.0, 0.0)], TOY_TABLE)
    assert (plan.terms, plan.bindings) == ({}, ())
    weights, flat = toy_weights(generator)
    before = bits(flat)
    assert MergeLedger(weights).apply(plan) == ()
    assert torch.equal(bits(flat), before)


def test_a_strength_of_0_for_the_model_leaves_its_weights_alone(generator):
    lora, *_ = toy_loras(generator)
    assert make_plan([StackItem(lora, 0.0, 1.0)], TOY_TABLE).terms == {}


def test_a_weighting_of_0_leaves_its_targets_alone(generator):
    lora, *_ = toy_loras(generator)
    weighting = Weighting.parse("conv*=0")
    plan = make_plan([StackItem(lora, weighting=weighting)], TOY_TABLE)
    assert "conv.weight" in toy_plan((lora, 1.0)).terms
    assert "conv.weight" not in plan.terms
    assert "linear.weight" in plan.terms


def test_the_weighting_multiplies_the_strength(generator):
    lora, *_ = toy_loras(generator)
    item = StackItem(lora, 0.8, weighting=Weighting.parse("conv*=0.5"))
    plan = make_plan([item], TOY_TABLE)
    assert {term.coefficient for term in plan.terms["conv.weight"]} == {0.4}
    assert {term.coefficient for term in plan.terms["linear.weight"]} == {0.8}


def test_planning_reads_no_factor(generator, tmp_path):
    path = save(toy_loras(generator)[0], tmp_path / "a.safetensors")
    lora = load_lora(path)
    path.unlink()
    assert make_plan([StackItem(lora)], TOY_TABLE).terms


def test_equal_tensors_with_another_alpha_in_their_config_are_another_lora(generator, tmp_path):
    """Two PEFT folders whose files have the same bytes."""
    items = []
    for alpha in (2, 4):
        folder = tmp_path / str(alpha)
        folder.mkdir()
        write_safetensors(
            folder / "adapter_model.safetensors",
            {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(4, 2)},
        )
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        items.append(StackItem(load_lora(folder)))
    plan = make_plan(items, one_weight_table("m", (4, 3)))
    ((_, patched),) = patched_tensors(plan, {"m": torch.zeros(4, 3)})
    assert patched.unique().tolist() == [2 * 1.0 + 2 * 2.0]


def test_a_changed_alpha_in_the_config_is_a_changed_term(generator, tmp_path):
    write_safetensors(
        tmp_path / "adapter_model.safetensors",
        {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(4, 2)},
    )
    weights = {"m": torch.zeros(4, 3)}
    ledger = MergeLedger(weights)
    for alpha in (2, 4):
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        plan = make_plan([StackItem(load_lora(tmp_path))], one_weight_table("m", (4, 3)))
        ledger.apply(plan)
        assert weights["m"].unique().tolist() == [alpha]


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 100.5, -101])
def test_strengths_out_of_range_are_refused(strength, generator):
    lora, *_ = toy_loras(generator)
    for name in ("strength_model", "strength_clip"):
        with pytest.raises(
            LoraError, match=rf"{name} is out of range.[\s\S]*-100 to 100[\s\S]*Fix"
        ):
            StackItem(lora, **{name: strength})
    assert checked_strength(-100, "x") == -100


def test_the_empty_stack_is_the_empty_plan():
    assert make_plan([], TOY_TABLE) == EMPTY_PLAN


def test_a_stack_that_fits_nothing_is_refused(generator):
    lora = lora_from_tensors("x", thin_tensors("elsewhere", (4, 3), 1, generator))
    with pytest.raises(LoraError, match="not for this model"):
        make_plan([StackItem(lora)], TOY_TABLE)


def test_several_modules_of_a_file_add_up_on_one_weight(generator):
    """A LoRA and a full difference of the same layer."""
    base, diff = normal((4, 3), generator), normal((4, 3), generator)
    tensors = thin_tensors("m", (4, 3), 2, generator)
    table = one_weight_table("m", (4, 3))
    alone = make_plan([StackItem(lora_from_tensors("x", tensors))], table)
    both = make_plan([StackItem(lora_from_tensors("x", tensors | {"m.diff": diff}))], table)
    left = dict(patched_tensors(both, {"m": base}))["m"]
    right = dict(patched_tensors(alone, {"m": base}))["m"] + diff
    torch.testing.assert_close(left, right)


def test_all_bits_of_the_base_are_untouched_by_planning(generator):
    weights, _ = toy_weights(generator)
    before = all_bits(weights)
    toy_plan(*((lora, 1.0) for lora in toy_loras(generator)))
    assert same_bits(all_bits(weights), before)
