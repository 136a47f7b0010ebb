"""The compiled loops give the bits of the torch operations, and the ledger works with either."""

import sys

import pytest
import torch

from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.patching import kernels
from lora_workbench.lora_core.patching.base_file import base_files
from lora_workbench.lora_core.patching.checksum import Checksum
from lora_workbench.lora_core.patching.exceptions import bits_of, exceptions_of, put_exceptions
from lora_workbench.lora_core.patching.fused import add_rounded
from lora_workbench.lora_core.patching.ledger import MergeLedger

from .toy_model import (
    MERGEABLE,
    all_bits,
    bits,
    normal,
    same_bits,
    toy_loras,
    toy_plan,
    toy_weights,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _one_thread():
    if not kernels.has_loops():
        pytest.skip("numba is not installed")
    found = torch.get_num_threads()
    torch.set_num_threads(1)  # where the loops are taken
    yield
    torch.set_num_threads(found)


def both_ways(monkeypatch, step):
    """What ``step`` gives with the loops, and without."""
    with monkeypatch.context() as patch:
        compiled = step()
        patch.setattr(kernels, "_loops", lambda: None)
        return compiled, step()


def assert_same_numbers(left, right):
    """Bit for bit, but for the payload of a NaN."""
    assert torch.equal(left.isnan(), right.isnan())
    known = ~left.isnan()
    assert torch.equal(bits(left[known]), bits(right[known]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [0.0, -0.0, 1e-7, 3e-5, 0.1, 700.0, float("inf")], ids=str)
def test_all_65536_halves_are_read_and_rounded_as_torch_does(dtype, size, generator, monkeypatch):
    halves = torch.arange(1 << 16).to(torch.uint16).view(dtype).reshape(256, 256)
    delta = (
        size * torch.ones(256, 256)
        if size in (0, float("inf"))
        else normal((256, 256), generator, size)
    )
    for sign in (1, -1):
        assert_same_numbers(*both_ways(monkeypatch, lambda s=sign: add_rounded(halves, delta, s)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_float32_near_a_tie_is_rounded_as_torch_does(dtype, monkeypatch):
    """Both sides of the middle between all neighbours, from subnormal numbers to overflow."""
    halves = torch.arange(0x7FFF).to(torch.int16).view(dtype).float()
    words = halves.view(torch.int32)
    middles = (words[:-1] + (words[1:] - words[:-1]) // 2).view(torch.float32)
    near = torch.stack(
        [(middles.view(torch.int32) + step).view(torch.float32) for step in (-1, 0, 1)]
    )
    near = torch.cat([near, -near]).nan_to_num(0.0)
    zeros = torch.full_like(near, -0.0).to(dtype)
    assert_same_numbers(*both_ways(monkeypatch, lambda: add_rounded(zeros, near, 1)))


@every_dtype
@pytest.mark.parametrize("std", [0.0005, 0.02], ids=["few exceptions", "many exceptions"])
@pytest.mark.parametrize("shape", [(3, 5), (64, 1024), (200, 1003)], ids=str)
def test_exceptions_are_the_same_and_bring_the_base_back(shape, std, dtype, generator, monkeypatch):
    base, delta = normal(shape, generator, 0.03, dtype), normal(shape, generator, std)
    base[0, :3] = torch.tensor([0.0, -0.0, float("inf")])
    merged = add_rounded(base, delta, 1)
    found, expected = both_ways(monkeypatch, lambda: exceptions_of(base, merged, delta))
    assert torch.equal(found.words, expected.words)
    assert torch.equal(found.where, expected.where)
    assert (found.counts is None) == (expected.counts is None)

    def restored():
        back = add_rounded(merged, delta, -1)
        put_exceptions(bits_of(back), found)
        return bits(back)

    assert all(torch.equal(back, bits(base)) for back in both_ways(monkeypatch, restored))


@pytest.mark.parametrize("dtype", MERGEABLE, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (90, 1000), (700, 1024), (1000,)], ids=str)
def test_checksums_are_the_same(shape, dtype, generator, monkeypatch):
    weight = normal(shape, generator, dtype=dtype)

    def summed():
        total, copy = Checksum(weight.device), torch.empty_like(weight)
        for start in range(0, shape[0], 31):
            if start % 2:
                total.update(weight[start : start + 31])
            else:
                total.copy(copy[start : start + 31], weight[start : start + 31])
                assert torch.equal(bits(copy[start : start + 31]), bits(weight[start : start + 31]))
        return int(total.value())

    compiled, plain = both_ways(monkeypatch, summed)
    assert compiled == plain


@pytest.mark.parametrize("rung", ["full", "file", "residual"])
@pytest.mark.parametrize("dtype", MERGEABLE, ids=str)
def test_a_ledger_writes_the_same_bits_and_either_undoes_the_other(
    rung, dtype, generator, tmp_path, monkeypatch
):
    torch.set_num_threads(2)  # the crew's threads, with the loops and without
    weights, _ = toy_weights(generator, dtype)
    write_safetensors(tmp_path / "base.safetensors", weights)
    files = base_files(open_safetensors(tmp_path / "base.safetensors"))
    base, (first, second, *_) = all_bits(weights), toy_loras(generator)
    ledger = MergeLedger(weights, rung, files)
    plans = [toy_plan((first, 0.8)), toy_plan((first, -0.3), (second, 1.0))]
    for start, goal in (plans, plans[::-1]):
        ledger.apply(start)
        compiled = all_bits(weights)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "_loops", lambda: None)
            ledger.apply(goal)
            ledger.apply(start)
            assert same_bits(all_bits(weights), compiled)
            ledger.unmerge()
            assert same_bits(all_bits(weights), base)
            ledger.apply(goal)
        ledger.unmerge()
        assert same_bits(all_bits(weights), base)


def test_without_numba_torch_does_the_work(monkeypatch):
    loops = kernels._loops
    loops.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "numba", None)
            assert not kernels.has_loops()
            assert kernels.compiled_for(torch.zeros(3)) is None
    finally:
        loops.cache_clear()
    assert kernels.compiled_for(torch.zeros(3)) is not None


def test_loops_are_taken_on_one_thread_for_contiguous_tensors_on_the_cpu():
    weight = torch.zeros(4, 6)
    assert kernels.compiled_for(weight) is not None
    assert kernels.compiled_for(weight, weight.t()) is None
    assert kernels.compiled_for(torch.nn.Parameter(weight)) is None
    assert kernels.calculating_for(weight.to(torch.float8_e5m2)) is None
    torch.set_num_threads(2)
    assert kernels.compiled_for(weight) is None
