"""The ledger: what it writes, what it refuses, and how it proves the way back."""

import os
import random

import pytest
import torch
from torch import nn

from lora_workbench.lora_core.errors import LoraError, UnknownChoiceError, UnusableModelError
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import load_lora, lora_from_tensors
from lora_workbench.lora_core.patching import fused, kernels, undo
from lora_workbench.lora_core.patching.base_file import base_files
from lora_workbench.lora_core.patching.copies import patched_tensors
from lora_workbench.lora_core.patching.fused import FusedUpdate
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.patching.residual import ResidualUndo
from lora_workbench.lora_core.stack import EMPTY_PLAN, StackItem, make_plan

from .toy_model import (
    CHUNK_ELEMENTS,
    MERGEABLE,
    TOY_TABLE,
    all_bits,
    bits,
    normal,
    same_bits,
    thin_tensors,
    toy_loras,
    toy_plan,
    toy_weights,
)

RUNGS = ("full", "file", "residual")
WRITERS = {
    "full": (undo, "write_merged"),
    "file": (undo, "write_merged"),
    "residual": (ResidualUndo, "_put"),
}
every_rung = pytest.mark.parametrize("rung", RUNGS)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", CHUNK_ELEMENTS)


@pytest.fixture
def loras(generator):
    return toy_loras(generator)


@pytest.fixture
def weights(generator):
    return toy_weights(generator, torch.float16)[0]


def checkpoint(weights, path):
    """The weights' file, as base files."""
    write_safetensors(path, weights, overwrite=True)
    return base_files(open_safetensors(path))


def ledger_of(weights, rung, tmp_path):
    files = checkpoint(weights, tmp_path / "base.safetensors") if rung == "file" else None
    return MergeLedger(weights, rung, files)


@every_rung
@pytest.mark.parametrize("dtype", MERGEABLE, ids=str)
def test_merge_change_add_remove_unmerge(rung, dtype, generator, loras, tmp_path):
    """Each state has the bits of a merge into a clean base, and the end those of the base."""
    weights, _ = toy_weights(generator, dtype)
    base, clean = all_bits(weights), {key: weight.clone() for key, weight in weights.items()}
    ledger, draw = ledger_of(weights, rung, tmp_path), random.Random(0)
    for _ in range(12):
        chosen = draw.sample(loras, draw.randint(0, 4))
        plan = toy_plan(*((lora, draw.choice([-1.0, 0.4, 1.1])) for lora in chosen))
        ledger.apply(plan)
        fresh = {key: weight.clone() for key, weight in clean.items()}
        MergeLedger(fresh, "residual" if rung == "residual" else "full").apply(plan)
        assert same_bits(all_bits(weights), all_bits(fresh))
        assert ledger.applied == plan.terms
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)
    assert (ledger.applied, ledger.rungs(), ledger.nbytes()) == ({}, {}, 0)


@every_rung
def test_only_storages_whose_terms_changed_are_written(rung, weights, loras, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "_loops", lambda: None)  # they write past Tensor.copy_
    ledger = ledger_of(weights, rung, tmp_path)
    a, b, c, _ = loras
    written = []
    monkeypatch.setattr(torch.Tensor, "copy_", noting_copies(torch.Tensor.copy_, weights, written))
    steps = [
        (
            [(a, 1.0)],
            {
                "linear.weight",
                "linear.bias",
                "conv.weight",
                "qkv.weight",
                "projection",
                "norm.weight",
            },
        ),
        ([(a, 1.0)], set()),
        ([(a, 1.0), (b, 1.0)], {"conv.weight", "qkv.weight"}),
        ([(b, 1.0), (a, 1.0)], set()),
        ([(b, 0.5), (a, 1.0)], {"conv.weight", "qkv.weight"}),
        ([(b, 0.5), (a, 1.0), (c, 0.0)], set()),
        (
            [(b, 0.5)],
            {
                "linear.weight",
                "linear.bias",
                "conv.weight",
                "qkv.weight",
                "projection",
                "norm.weight",
            },
        ),
        ([], {"conv.weight", "qkv.weight"}),
        ([], set()),
    ]
    for stack, expected in steps:
        written.clear()
        assert set(ledger.apply(toy_plan(*stack))) == expected
        assert set(written) == expected


def noting_copies(copy, weights, written):
    """``Tensor.copy_`` that notes the storages of the model it writes into."""
    spans = {key: (w.data_ptr(), w.data_ptr() + w.nbytes) for key, w in weights.items()}

    def noting(self, *args):
        where = self.data_ptr()
        written.extend(key for key, (start, stop) in spans.items() if start <= where < stop)
        return copy(self, *args)

    return noting


def test_equal_plans_made_anew_write_nothing(weights, loras):
    ledger = MergeLedger(weights)
    ledger.apply(toy_plan((loras[0], 0.7), (loras[1], 0.2)))
    assert ledger.apply(toy_plan((loras[1], 0.2), (loras[0], 0.7))) == ()


def test_rungs_and_bytes_tell_what_is_kept(weights, loras, tmp_path):
    changed = toy_plan((loras[0], 1.0)).terms
    size = sum(weights[key].nbytes for key in changed)
    for rung, low, high in (("full", size, size), ("file", 0, 0), ("residual", 1, size)):
        ledger = ledger_of(weights, rung, tmp_path)
        ledger.apply(toy_plan((loras[0], 1.0)))
        assert ledger.rungs() == {rung: len(changed)}
        assert low <= ledger.nbytes() <= high
        ledger.unmerge()


def test_factors_are_read_once_and_forgotten_with_their_last_term(weights, loras, tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, loras[0].file.read_many(loras[0].file.tensors))
    plans = [make_plan([StackItem(load_lora(path), s)], TOY_TABLE) for s in (1.0, 0.5)]
    ledger = MergeLedger(weights)
    ledger.apply(plans[0])
    path.rename(tmp_path / "elsewhere")
    ledger.apply(plans[1])
    ledger.unmerge()
    with pytest.raises(LoraError, match="does not exist"):
        ledger.apply(plans[0])


@every_rung
def test_tensors_of_a_lora_in_memory_may_change_after_the_merge(rung, weights, generator, tmp_path):
    """The undo computes with the factors that were merged, not with the next training step's."""
    tensors = thin_tensors("conv", (6, 4, 3, 3), 2, generator)
    base, ledger = all_bits(weights), ledger_of(weights, rung, tmp_path)
    ledger.apply(toy_plan((lora_from_tensors("x", tensors), 1.0)))
    for tensor in tensors.values():
        tensor.mul_(2)
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)


# Undo proofs


@pytest.mark.parametrize("damage", ["bit", "shape", "dtype", "absent", "gone", "cut"])
def test_a_checkpoint_that_does_not_match_is_not_an_undo(damage, weights, loras, tmp_path):
    path = tmp_path / "base.safetensors"
    stored = {key: weight.clone() for key, weight in weights.items()}
    if damage == "bit":
        stored["conv.weight"].view(torch.int16)[0, 0, 0, 0] ^= 1
    if damage == "shape":
        stored["conv.weight"] = stored["conv.weight"].reshape(4, 6, 3, 3)
    if damage == "dtype":
        stored["conv.weight"] = stored["conv.weight"].to(torch.float8_e4m3fn)
    if damage == "absent":
        del stored["conv.weight"]
    files = checkpoint(stored, path)
    if damage == "gone":
        path.unlink()
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 3)
    base, plan = all_bits(weights), toy_plan((loras[0], 1.0))
    with pytest.raises(LoraError, match=r"'file' cannot be proved[\s\S]*Checkpoint: [\s\S]*Fix: "):
        MergeLedger(weights, "file", files).apply(plan)
    assert same_bits(all_bits(weights), base)
    ledger = MergeLedger(weights, "auto", files)
    ledger.apply(plan)
    lost = len(plan.terms) if damage in ("gone", "cut") else 1
    wanted = {"full": lost, "file": len(plan.terms) - lost}
    assert ledger.rungs() == {rung: count for rung, count in wanted.items() if count}
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)


@pytest.mark.parametrize("damage", ["touched", "gone", "other bits at the same time"])
@pytest.mark.parametrize("way", ["unmerge", "change"])
def test_a_checkpoint_changed_after_the_merge_makes_the_model_unusable(
    way, damage, weights, loras, tmp_path
):
    path, plan = tmp_path / "base.safetensors", toy_plan((loras[0], 1.0))
    ledger = MergeLedger(weights, "file", checkpoint(weights, path))
    ledger.apply(plan)
    stat = path.stat()
    if damage == "gone":
        path.rename(tmp_path / "aside")
    else:
        raw = bytearray(path.read_bytes())
        raw[-1] ^= damage != "touched"
        path.write_bytes(raw)
        later = stat.st_mtime_ns + (damage == "touched")
        os.utime(path, ns=(stat.st_atime_ns, later))
    with pytest.raises(UnusableModelError, match=r"Weight: [\s\S]*Cause: [\s\S]*Fix: load the"):
        ledger.apply(EMPTY_PLAN if way == "unmerge" else toy_plan((loras[0], 0.5)))
    if damage == "gone":
        (tmp_path / "aside").rename(path)
    for call in (ledger.unmerge, ledger.recover, lambda: ledger.apply(plan)):
        with pytest.raises(UnusableModelError):
            call()


def flip_a_recorded_word(ledger, key="conv.weight"):
    chunk = next(c for c in ledger._records[key].chunks.values() if c.exceptions.words.numel())
    with torch.inference_mode():
        chunk.exceptions.words[0] ^= 1


@pytest.mark.parametrize("way", ["unmerge", "change"])
def test_a_damaged_residual_is_healed_from_the_file_behind_it(way, weights, loras, tmp_path):
    base, files = all_bits(weights), checkpoint(weights, tmp_path / "base.safetensors")
    clean = {key: weight.clone() for key, weight in weights.items()}
    ledger = MergeLedger(weights, "residual", files)
    ledger.apply(toy_plan((loras[0], 1.0)))
    flip_a_recorded_word(ledger)
    if way == "change":
        plan = toy_plan((loras[0], 0.5))
        ledger.apply(plan)
        expected = dict(patched_tensors(plan, clean))["conv.weight"]
        assert torch.equal(bits(weights["conv.weight"]), bits(expected))
        assert ledger.rungs() == {"residual": len(plan.terms) - 1, "file": 1}
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)


@pytest.mark.parametrize("behind", ["nothing", "another checkpoint", "a damaged checkpoint"])
@pytest.mark.parametrize("way", ["unmerge", "change"])
def test_a_damaged_residual_without_a_proof_makes_the_model_unusable(
    way, behind, weights, loras, tmp_path
):
    path = tmp_path / "base.safetensors"
    other = {key: weight + 1 for key, weight in weights.items()}
    files = checkpoint(other if behind == "another checkpoint" else weights, path)
    ledger = MergeLedger(weights, "residual", None if behind == "nothing" else files)
    ledger.apply(toy_plan((loras[0], 1.0)))
    flip_a_recorded_word(ledger)
    if behind == "a damaged checkpoint":
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UnusableModelError, match=r"conv.weight[\s\S]*Fix: "):
        ledger.apply(EMPTY_PLAN if way == "unmerge" else toy_plan((loras[0], 0.5)))
    with pytest.raises(UnusableModelError):
        ledger.recover()


def test_a_damaged_copy_is_noticed(weights, loras):
    ledger = MergeLedger(weights, "full")
    ledger.apply(toy_plan((loras[0], 1.0)))
    with torch.inference_mode():
        ledger._records["conv.weight"].copy[0, 0, 0, 0] += 1
    with pytest.raises(UnusableModelError, match=r"conv.weight"):
        ledger.unmerge()


@pytest.mark.parametrize("when", ["at the merge", "at a change"])
def test_a_product_that_does_not_repeat_is_not_an_undo(when, weights, loras, monkeypatch):
    """The probe sees it, and the storage gets a copy instead."""
    base, ledger = all_bits(weights), MergeLedger(weights, "residual")
    first, second = toy_plan((loras[0], 1.0)), toy_plan((loras[0], 1.0), (loras[1], 1.0))
    if when == "at a change":
        ledger.apply(first)
        assert set(ledger.rungs()) == {"residual"}
    delta, calls = FusedUpdate.delta, iter(range(10**9))

    def noisy(self, start, stop, columns, base=None):
        wide = any(rank == 5 for _, _, rank in self.ranks())  # conv of the first two together
        exact = delta(self, start, stop, columns, base)
        return exact + next(calls) if wide else exact

    monkeypatch.setattr(FusedUpdate, "delta", noisy)
    ledger.apply(second)
    assert ledger.rungs()["full"] == 1
    ledger.apply(first)
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)


def test_an_undo_computes_under_the_number_of_threads_of_its_merge(weights, loras, monkeypatch):
    """Another number may sum a product in another order; the host's comes back afterwards."""
    base, found, seen = all_bits(weights), torch.get_num_threads(), []
    delta = FusedUpdate.delta

    def noting(self, *args):
        seen.append(torch.get_num_threads())
        return delta(self, *args)

    monkeypatch.setattr(FusedUpdate, "delta", noting)
    ledger = MergeLedger(weights, "residual")
    try:
        torch.set_num_threads(1)
        ledger.apply(toy_plan((loras[0], 1.0)))
        torch.set_num_threads(2)
        ledger.apply(toy_plan((loras[0], 1.0), (loras[1], 1.0)))
        ledger.unmerge()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(found)
    assert set(seen) == {1}
    assert same_bits(all_bits(weights), base)


# What is refused, with the model as it was


def test_nan_in_a_factor_is_refused(weights, loras, generator):
    tensors = thin_tensors("conv", (6, 4, 3, 3), 2, generator)
    tensors["conv.lora_up.weight"][1] = float("nan")
    refused(weights, loras, toy_plan((lora_from_tensors("bad", tensors), 1.0)), "NaN or infinity")


def test_a_missing_file_is_refused(weights, loras, generator, tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, thin_tensors("conv", (6, 4, 3, 3), 2, generator))
    plan = toy_plan((loras[1], 1.0), (load_lora(path), 1.0))
    path.unlink()
    refused(weights, loras, plan, "does not exist")


def refused(weights, loras, plan, message):
    """A change to ``plan`` fails, leaves what was merged, and can still be undone."""
    base, ledger = all_bits(weights), MergeLedger(weights, "full")
    ledger.apply(toy_plan((loras[0], 1.0)))
    before, applied = all_bits(weights), ledger.applied
    with pytest.raises(LoraError, match=rf"{message}[\s\S]*Fix: "):
        ledger.apply(plan)
    assert same_bits(all_bits(weights), before)
    assert ledger.applied == applied
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.float64, torch.float8_e4m3fnuz], ids=str
)
def test_dtypes_that_carry_no_merge_are_refused(dtype, weights, loras):
    weights = weights | {"conv.weight": torch.ones(6, 4, 3, 3).to(dtype)}
    before = all_bits(weights)
    for merge in (MergeLedger(weights).apply, lambda plan: list(patched_tensors(plan, weights))):
        with pytest.raises(LoraError, match=rf"conv.weight: .*{dtype}[\s\S]*Fix: "):
            merge(toy_plan((loras[0], 1.0)))
    assert same_bits(all_bits(weights), before)


@pytest.mark.parametrize(
    "name", ["conv.scale_weight", "conv.weight_scale", "conv.comfy_quant", "scaled_fp8"]
)
def test_scaled_fp8_is_refused_by_name(name, generator, loras):
    weights, _ = toy_weights(generator, torch.float8_e4m3fn)
    weights[name] = torch.ones(())
    before = all_bits({"conv.weight": weights["conv.weight"]})
    with pytest.raises(LoraError, match=rf"scaled fp8[\s\S]*Found: {name}[\s\S]*Fix: "):
        MergeLedger(weights).apply(toy_plan((loras[1], 1.0)))
    assert same_bits(all_bits({"conv.weight": weights["conv.weight"]}), before)


def test_plain_fp8_beside_other_scales_is_merged(generator, loras):
    weights, _ = toy_weights(generator, torch.float8_e4m3fn)
    weights["elsewhere.scale_weight"] = torch.ones(())
    assert MergeLedger(weights).apply(toy_plan((loras[1], 1.0)))


def test_weights_that_share_memory_are_refused(weights, loras):
    flat = torch.zeros(7 * 5 + 5 * 6 - 1, dtype=torch.float16)
    weights |= {"linear.weight": flat[:35].view(7, 5), "projection": flat[34:].view(5, 6)}
    with pytest.raises(LoraError, match=r"share memory[\s\S]*linear.weight[\s\S]*Fix: "):
        MergeLedger(weights).apply(toy_plan((loras[0], 1.0)))
    assert not flat.any()


def test_a_weight_that_shares_memory_with_a_merged_one_is_refused(weights, loras, generator):
    """Merged one after the other, each undo would restore the other's delta."""
    shared = weights["linear.weight"]
    weights |= {"projection": shared.reshape(-1)[:30].view(5, 6)}
    base, ledger = all_bits(weights), MergeLedger(weights)
    ledger.apply(toy_plan((loras[2], 1.0)))  # linear, not projection
    tensors = thin_tensors("projection", (6, 5), 2, generator)
    with pytest.raises(LoraError, match="share memory"):
        ledger.apply(toy_plan((loras[2], 1.0), (lora_from_tensors("x", tensors), 1.0)))
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)


def test_strided_weights_that_share_memory_are_refused(loras, generator):
    wide = torch.zeros(7, 12, dtype=torch.float16)
    weights, _ = toy_weights(generator, torch.float16)
    below = wide.view(-1)[48:78].view(5, 6)  # after 35 elements, yet in the last rows
    weights |= {"linear.weight": wide[:, :5], "projection": below}
    with pytest.raises(LoraError, match="share memory"):
        MergeLedger(weights).apply(toy_plan((loras[0], 1.0)))
    assert not wide.any()


def test_a_weight_that_the_model_lacks_is_refused(weights, loras):
    del weights["conv.weight"]
    before = all_bits(weights)
    for merge in (MergeLedger(weights).apply, lambda plan: list(patched_tensors(plan, weights))):
        with pytest.raises(LoraError, match=r"no weight conv.weight[\s\S]*Fix: "):
            merge(toy_plan((loras[0], 1.0)))
    assert same_bits(all_bits(weights), before)


def test_a_model_moved_while_merged_is_not_called_restored(loras):
    """``Module.to`` gives a parameter other memory; a record of the old one restores nothing."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(6, 4, 3, 3))
    weights = {"conv.weight": module.weight}
    ledger = MergeLedger(weights)
    ledger.apply(only_conv(loras[1]))
    module.half()
    with pytest.raises(LoraError, match=r"conv.weight was moved or replaced[\s\S]*Fix: "):
        ledger.unmerge()


def test_a_model_moved_before_it_recovered_is_not_called_restored(
    weights, loras, monkeypatch, threads
):
    threads(1)  # one storage after another, the largest first
    ledger = MergeLedger(weights)
    with monkeypatch.context() as patch:
        stop_after(patch, undo, "write_merged", 5)
        patch.setattr(MergeLedger, "_recover", lambda self: None)
        with pytest.raises(Stop):
            ledger.apply(toy_plan((loras[0], 1.0)))
    weights["conv.weight"] = weights["conv.weight"].clone()
    for call in (ledger.recover, ledger.unmerge):
        with pytest.raises(LoraError, match=r"conv.weight was moved or replaced"):
            call()


def only_conv(lora, strength=1.0):
    plan = toy_plan((lora, strength))
    return type(plan)({"conv.weight": plan.terms["conv.weight"]}, plan.bindings)


def test_an_unknown_rung_is_refused(weights):
    with pytest.raises(UnknownChoiceError, match=r"'ful'[\s\S]*use 'full'"):
        MergeLedger(weights, "ful")


# What weights may be


@every_rung
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_layout_is_merged_and_restored(rung, dtype, generator, loras, tmp_path):
    """channels_last, transposed, every second row, rows of a wider matrix."""
    plain, _ = toy_weights(generator, dtype)
    wide = normal((10, 8), generator, dtype=dtype)
    wide[1:6, 1:7] = plain["projection"]
    doubled = normal((18, 4), generator, dtype=dtype)
    doubled[::2] = plain["qkv.weight"]
    weights = {key: weight.clone() for key, weight in plain.items()} | {
        "conv.weight": plain["conv.weight"].contiguous(memory_format=torch.channels_last),
        "linear.weight": plain["linear.weight"].t().contiguous().t(),
        "projection": wide[1:6, 1:7],
        "qkv.weight": doubled[::2],
    }
    base, around = all_bits(weights), (bits(wide), bits(doubled))
    plan = toy_plan(*((lora, 0.5) for lora in loras))
    ledger = ledger_of(weights, rung, tmp_path)
    ledger.apply(plan)
    MergeLedger(plain, "residual" if rung == "residual" else "full").apply(plan)
    assert same_bits(all_bits(weights), all_bits(plain))
    ledger.apply(toy_plan((loras[0], -1.0)))
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)
    assert all(torch.equal(bits(a), b) for a, b in zip((wide, doubled), around, strict=True))


@every_rung
def test_parameters_keep_their_identity_and_can_be_trained(rung, generator, loras, tmp_path):
    plain, _ = toy_weights(generator)
    weights = {key: nn.Parameter(weight.clone()) for key, weight in plain.items()}
    places = {key: weight.data_ptr() for key, weight in weights.items()}
    ledger = ledger_of({key: w.detach() for key, w in weights.items()}, rung, tmp_path)
    ledger._weights = weights
    ledger.apply(toy_plan((loras[0], 1.0)))
    loss = sum((weight**2).sum() for weight in weights.values())
    loss.backward()
    assert all(weight.grad is not None for weight in weights.values())
    ledger.unmerge()
    assert same_bits(all_bits(weights), all_bits(plain))
    assert {key: weight.data_ptr() for key, weight in weights.items()} == places
    assert all(weight.requires_grad and weight.is_leaf for weight in weights.values())


@every_rung
def test_inference_tensors_are_merged_and_restored(rung, generator, loras, tmp_path):
    plain, _ = toy_weights(generator)
    with torch.inference_mode():
        weights = {key: weight.clone() for key, weight in plain.items()}
    ledger = ledger_of(weights, rung, tmp_path)
    ledger.apply(toy_plan((loras[0], 1.0)))
    assert not same_bits(all_bits(weights), all_bits(plain))
    ledger.unmerge()
    assert same_bits(all_bits(weights), all_bits(plain))


def test_reduced_precision_of_the_host_does_not_reach_the_merge(generator, loras):
    expected, _ = toy_weights(torch.Generator().manual_seed(0))
    weights, _ = toy_weights(torch.Generator().manual_seed(0))
    MergeLedger(expected, "residual").apply(toy_plan((loras[0], 1.0)))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            MergeLedger(weights, "residual").apply(toy_plan((loras[0], 1.0)))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert same_bits(all_bits(weights), all_bits(expected))


# Interrupts at chosen places; random ones are in test_ledger_interrupts.py


class Stop(BaseException):
    """What no handler of ours expects."""


def stop_after(monkeypatch, owner, name, calls):
    """Let ``owner.name`` run ``calls`` times, then raise, once."""
    function, left = getattr(owner, name), [calls]

    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == -1:
            raise Stop
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


@every_rung
def test_the_way_back_needs_no_lora_file(rung, weights, loras, tmp_path, monkeypatch):
    """The file that was merged is deleted, then a change to another LoRA is interrupted."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, loras[0].file.read_many(loras[0].file.tensors))
    base, ledger = all_bits(weights), ledger_of(weights, rung, tmp_path)
    ledger.apply(make_plan([StackItem(load_lora(path))], TOY_TABLE))
    merged = all_bits(weights)
    path.unlink()
    stop_after(monkeypatch, *WRITERS[rung], 5)
    with pytest.raises(Stop):
        ledger.apply(toy_plan((loras[1], 1.0), (loras[2], 1.0)))
    assert same_bits(all_bits(weights), merged)
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)


def test_a_base_loaded_anew_after_an_interrupted_unmerge_is_not_overwritten(
    weights, loras, monkeypatch
):
    """The interrupt comes after the last word is restored and before the record is dropped."""
    ledger = MergeLedger(weights, "full")
    ledger.apply(toy_plan((loras[0], 1.0)))
    with monkeypatch.context() as patch:
        prune, calls = MergeLedger._prune, iter(range(100))

        def late(self):
            if next(calls) == 1:
                raise Stop
            prune(self)

        patch.setattr(MergeLedger, "_prune", late)
        with pytest.raises(Stop):
            ledger.unmerge()
    for weight in weights.values():
        weight.fill_(0.25)
    reloaded = all_bits(weights)
    ledger.apply(toy_plan((loras[0], 1.0)))
    ledger.unmerge()
    assert same_bits(all_bits(weights), reloaded)


def test_applied_tells_where_an_unfinished_way_back_leads(weights, loras, monkeypatch):
    ledger = MergeLedger(weights, "full")
    ledger.apply(toy_plan((loras[0], 1.0)))
    applied, merged = ledger.applied, all_bits(weights)
    with monkeypatch.context() as patch:
        stop_after(patch, undo, "write_merged", 5)
        patch.setattr(MergeLedger, "_recover", lambda self: None)
        with pytest.raises(Stop):
            ledger.apply(toy_plan((loras[0], 0.5)))
    assert not same_bits(all_bits(weights), merged)
    assert ledger.applied == applied
    ledger.recover()
    assert same_bits(all_bits(weights), merged)
    assert ledger.applied == applied
