"""Merging into a checkpoint file: same bits as in memory, bounded memory, all or nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError, NothingMatchedError, UnsupportedFormatError
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.tensor_file import open_tensor_file
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import load_lora, lora_from_tensors
from lora_workbench.lora_core.models import table_from_shapes
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.patching.merge_file import (
    MERGED_KEY,
    merge_checkpoint,
    merged_metadata,
)
from lora_workbench.lora_core.stack import StackItem, make_plan
from lora_workbench.lora_core.weighting import Weighting

from ..lora_files import Module, lora_tensors, small_sd15

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
BLOCK = "down_blocks.0.attentions.0"
MODULES = [
    Module("unet", f"{BLOCK}.transformer_blocks.0.attn1.to_q", (320, 320)),
    Module("unet", f"{BLOCK}.transformer_blocks.0.attn2.to_k", (320, 768)),
    Module("unet", f"{BLOCK}.proj_in", (320, 320, 1, 1)),
    Module("unet", "down_blocks.0.resnets.0.conv1", (320, 320, 3, 3)),
    Module("te1", "text_model.encoder.layers.0.self_attn.q_proj", (768, 768)),
]


def table_of(file):
    return table_from_shapes({key: info.shape for key, info in file.tensors.items()})


@pytest.fixture
def checkpoint(tmp_path):
    """The first blocks of SD1.5 in fp16, with a header."""
    path = tmp_path / "base.safetensors"
    header = {"modelspec.title": "base", "sshs_model_hash": "ab", "modelspec.hash_sha256": "0xcd"}
    write_safetensors(path, small_sd15(torch.float16), header)
    return open_safetensors(path)


def stack_of_two():
    """kohya names at rank 4, PEFT names at rank 3 with a bias; other strengths, other blocks."""
    first = lora_tensors(MODULES, "kohya", rank=4, alpha=2.0, seed=1)
    second = lora_tensors(MODULES[:2], "peft", rank=3, seed=2)
    second |= {"down_blocks.0.resnets.0.conv1.diff_b": torch.full((320,), 0.01)}
    return [
        StackItem(lora_from_tensors("first", first), 0.8, -0.5, Weighting.parse("attn2=0.25")),
        StackItem(lora_from_tensors("second", second), -1.5),
    ]


def raw(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_file_has_the_bits_that_the_ledger_writes_in_memory(tmp_path, dtype):
    write_safetensors(tmp_path / "base.safetensors", small_sd15(dtype))
    file = open_safetensors(tmp_path / "base.safetensors")
    plan = make_plan(stack_of_two(), table_of(file))
    weights = file.read_many(file.tensors)
    written = MergeLedger(weights, "full").apply(plan)

    changed = merge_checkpoint(file, plan, tmp_path / "out.safetensors")

    merged = open_safetensors(tmp_path / "out.safetensors")
    assert set(changed) == set(written) == set(plan.terms)
    assert len(changed) == 6
    for key, weight in weights.items():
        assert torch.equal(raw(merged.read(key)), raw(weight)), key


def test_one_weight_worked_by_hand(tmp_path):
    """W = 1 everywhere; up @ down = 2 * 3 = 6, alpha / rank = 1/2, strength 0.5: W' = 2.5."""
    tensors = small_sd15(torch.float16)
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    tensors[key] = torch.ones_like(tensors[key])
    write_safetensors(tmp_path / "base.safetensors", tensors)
    file = open_safetensors(tmp_path / "base.safetensors")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    factors = {
        f"{name}.lora_down.weight": torch.tensor([[3.0] * 320, [0.0] * 320]),
        f"{name}.lora_up.weight": torch.tensor([[2.0, 7.0]] * 320),
        f"{name}.alpha": torch.tensor(1.0),
    }
    plan = make_plan([StackItem(lora_from_tensors("x", factors), 0.5)], table_of(file))
    assert merge_checkpoint(file, plan, tmp_path / "out.safetensors") == (key,)
    assert open_safetensors(tmp_path / "out.safetensors").read(key).unique().tolist() == [2.5]


def test_untouched_tensors_keep_order_place_and_bytes(checkpoint, tmp_path):
    plan = make_plan(stack_of_two(), table_of(checkpoint))
    merge_checkpoint(checkpoint, plan, tmp_path / "out.safetensors", checkpoint.metadata)
    merged = open_safetensors(tmp_path / "out.safetensors")
    assert list(merged.tensors) == list(checkpoint.tensors)
    before, after = checkpoint.path.read_bytes(), merged.path.read_bytes()
    shift = merged.data_start - checkpoint.data_start
    for key, info in checkpoint.tensors.items():
        assert merged.tensors[key][:2] == info[:2]
        same = before[info.start : info.stop] == after[info.start + shift : info.stop + shift]
        assert same == (key not in plan.terms), key


def test_an_empty_plan_copies_the_data(checkpoint, tmp_path):
    out = tmp_path / "out.safetensors"
    assert merge_checkpoint(checkpoint, make_plan([], table_of(checkpoint)), out) == ()
    data = out.read_bytes()[open_safetensors(out).data_start :]
    assert data == checkpoint.path.read_bytes()[checkpoint.data_start :]


def test_the_checkpoint_is_not_touched(checkpoint, tmp_path):
    before = checkpoint.path.read_bytes(), checkpoint.path.stat().st_mtime_ns
    merge_checkpoint(
        checkpoint, make_plan(stack_of_two(), table_of(checkpoint)), tmp_path / "out.safetensors"
    )
    assert before == (checkpoint.path.read_bytes(), checkpoint.path.stat().st_mtime_ns)


def test_the_header_says_what_was_merged_and_drops_hashes_that_hold_no_longer(checkpoint):
    once = merged_metadata(checkpoint.metadata, "base.safetensors", [{"name": "a", "strength": 1}])
    assert set(once) == {"modelspec.title", MERGED_KEY}
    (entry,) = json.loads(once[MERGED_KEY])
    assert entry["base"] == "base.safetensors"
    assert entry["base_hashes"] == {"sshs_model_hash": "ab", "modelspec.hash_sha256": "0xcd"}
    assert entry["loras"] == [{"name": "a", "strength": 1}]
    twice = json.loads(merged_metadata(once, "once.safetensors", [])[MERGED_KEY])
    assert [merge["base"] for merge in twice] == ["base.safetensors", "once.safetensors"]


@pytest.mark.parametrize("stored", ["[", "{}", "7", "[" * 100_000])
def test_an_unreadable_earlier_entry_is_replaced(stored):
    (entry,) = json.loads(merged_metadata({MERGED_KEY: stored}, "b", [])[MERGED_KEY])
    assert entry["base"] == "b"


def test_an_existing_output_is_only_replaced_when_asked(checkpoint, tmp_path):
    out, plan = tmp_path / "out.safetensors", make_plan(stack_of_two(), table_of(checkpoint))
    out.write_text("mine")
    with pytest.raises(LoraError, match="exists"):
        merge_checkpoint(checkpoint, plan, out)
    assert out.read_text() == "mine"
    merge_checkpoint(checkpoint, plan, out, overwrite=True)
    assert open_safetensors(out).tensors.keys() == checkpoint.tensors.keys()


@pytest.mark.parametrize("alias", ["itself", "symlink", "hard link"])
def test_an_input_is_never_the_output(checkpoint, tmp_path, alias):
    out = tmp_path / "alias.safetensors"
    if alias == "itself":
        out = checkpoint.path
    elif alias == "symlink":
        out.symlink_to(checkpoint.path)
    else:
        os.link(checkpoint.path, out)
    before = checkpoint.path.read_bytes()
    with pytest.raises(LoraError, match="one of the inputs"):
        merge_checkpoint(
            checkpoint, make_plan(stack_of_two(), table_of(checkpoint)), out, overwrite=True
        )
    assert checkpoint.path.read_bytes() == before


def test_a_lora_is_never_the_output(checkpoint, tmp_path):
    path = tmp_path / "lora.safetensors"
    write_safetensors(path, lora_tensors(MODULES))
    plan = make_plan([StackItem(load_lora(path))], table_of(checkpoint))
    with pytest.raises(LoraError, match="one of the inputs"):
        merge_checkpoint(checkpoint, plan, path, overwrite=True)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 20, 59])
def test_an_interrupt_leaves_nothing_behind(checkpoint, tmp_path, after):
    calls = []

    def stop_after(nbytes):
        calls.append(nbytes)
        if len(calls) == after:
            raise Stop

    plan = make_plan(stack_of_two(), table_of(checkpoint))
    with pytest.raises(Stop):
        merge_checkpoint(checkpoint, plan, tmp_path / "out.safetensors", progress=stop_after)
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_nan_in_a_factor_leaves_nothing_behind(checkpoint, tmp_path):
    tensors = lora_tensors(MODULES)
    next(iter(tensors.values()))[0, 0] = torch.nan
    plan = make_plan([StackItem(lora_from_tensors("broken", tensors))], table_of(checkpoint))
    with pytest.raises(LoraError, match="NaN"):
        merge_checkpoint(checkpoint, plan, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_progress_counts_every_byte_once(checkpoint, tmp_path):
    told = []
    plan = make_plan(stack_of_two(), table_of(checkpoint))
    merge_checkpoint(checkpoint, plan, tmp_path / "out.safetensors", progress=told.append)
    assert sum(told) == sum(info.nbytes for info in checkpoint.tensors.values())


def test_a_pickled_checkpoint_is_refused(tmp_path):
    torch.save(small_sd15(torch.float16), tmp_path / "base.ckpt")
    file = open_tensor_file(tmp_path / "base.ckpt")
    with pytest.raises(UnsupportedFormatError, match="only a safetensors checkpoint"):
        merge_checkpoint(
            file, make_plan(stack_of_two(), table_of(file)), tmp_path / "o.safetensors"
        )


def test_scaled_fp8_is_refused_by_name(tmp_path):
    tensors = small_sd15(torch.float8_e4m3fn)
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    tensors[f"{key}.scale_weight"] = torch.ones(())
    write_safetensors(tmp_path / "base.safetensors", tensors)
    file = open_safetensors(tmp_path / "base.safetensors")
    with pytest.raises(LoraError, match="scaled fp8"):
        merge_checkpoint(
            file, make_plan(stack_of_two(), table_of(file)), tmp_path / "out.safetensors"
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_a_lora_for_nothing_here_is_refused(checkpoint):
    lora = lora_from_tensors(
        "x", {"foo.lora_down.weight": torch.ones(1, 2), "foo.lora_up.weight": torch.ones(2, 1)}
    )
    with pytest.raises(NothingMatchedError):
        make_plan([StackItem(lora)], table_of(checkpoint))


PEAK = """
import sys
from pathlib import Path
import torch
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.lora_core.models import table_from_shapes
from lora_workbench.lora_core.patching.merge_file import merge_checkpoint
from lora_workbench.lora_core.stack import StackItem, make_plan

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith("RssAnon")).split()[1]) * 1024

file = open_safetensors(sys.argv[1])
table = table_from_shapes({key: info.shape for key, info in file.tensors.items()})
plan = make_plan([StackItem(load_lora(sys.argv[2]))], table)
torch.ones(4, 4) @ torch.ones(4, 4)
peaks = [anonymous()]
merge_checkpoint(file, plan, sys.argv[3], progress=lambda n: peaks.append(anonymous()))
print(max(peaks) - peaks[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """One matrix that a LoRA changes and one it does not: 19 MB each, then 100 MB each."""
    grown = []
    for rows in (12288, 65536):
        fc1 = Module("te1", "text_model.encoder.layers.0.mlp.fc1", (rows, 768))
        tensors = small_sd15(torch.float16)
        shared = torch.zeros(fc1.shape, dtype=torch.float16)
        tensors[f"cond_stage_model.transformer.{fc1.path}.weight"] = shared
        tensors["first_stage_model.other"] = shared
        paths = [tmp_path / f"{name}{rows}.safetensors" for name in ("base", "lora", "out")]
        write_safetensors(paths[0], tensors)
        write_safetensors(paths[1], lora_tensors([fc1]))
        command = [sys.executable, "-c", PEAK, *paths]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        grown.append(int(done.stdout))
    small, large = grown
    assert large < small + (16 << 20)
