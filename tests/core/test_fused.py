"""The fused update against float64 and against numbers by hand."""

import math
from itertools import pairwise

import pytest
import torch

from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.models.target import ModuleTargets, Target
from lora_workbench.lora_core.patching import fused
from lora_workbench.lora_core.patching.base_file import base_files
from lora_workbench.lora_core.patching.copies import patched_tensors
from lora_workbench.lora_core.patching.fused import fuse, merged_rows, rounded, row_chunks
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.stack import StackItem, make_plan

from .toy_model import (
    MERGEABLE,
    Table,
    bits,
    normal,
    one_weight_table,
    product64,
    same_bits,
    thin_tensors,
    toy_loras,
    toy_plan,
    toy_weights,
)

# mantissa bits, exponent of the smallest normal number, largest number
FORMATS = {
    torch.float32: (23, -126, math.inf),
    torch.float16: (10, -14, math.inf),
    torch.bfloat16: (7, -126, math.inf),
    torch.float8_e4m3fn: (3, -6, 448.0),
    torch.float8_e5m2: (2, -14, 57344.0),
}
every_dtype = pytest.mark.parametrize("dtype", MERGEABLE, ids=str)


def ulp(values, dtype):
    """Distance of the dtype's numbers around float64 ``values``."""
    mantissa, smallest, _ = FORMATS[dtype]
    exponent = torch.frexp(values).exponent - 1
    return torch.ldexp(torch.ones_like(values), exponent.clamp(min=smallest) - mantissa)


def correctly_rounded(values, dtype):
    """Float64 to the nearest number of ``dtype``, ties to even, by arithmetic."""
    step, largest = ulp(values, dtype), FORMATS[dtype][2]
    return (torch.round(values / step) * step).clamp(-largest, largest)


def assert_fidelity(merged, base, delta):
    """The tolerances of the project: ``base`` as stored, ``delta`` in float64."""
    exact, dtype = base.double() + delta, merged.dtype
    error = (merged.double() - exact).abs()
    if dtype == torch.float32:
        assert error.norm() <= 1e-6 * delta.norm() + 2**-24 * base.double().norm()
        return
    best = correctly_rounded(exact, dtype)
    close = (merged.double() - best).abs() <= ulp(exact, dtype)
    close |= error <= 2**-21 * (base.double().abs() + delta.abs())
    assert close.all()
    assert (merged.double() == best).double().mean() >= 0.999


def std_for(rank, delta_std):
    """Standard deviation of both factors, alpha / rank near 1/2."""
    return (2 * delta_std / rank**0.5) ** 0.5


VIEWS = {
    "linear": [((160, 96), None, False)],
    "1x1 convolution": [((96, 80, 1, 1), None, False)],
    "3x3 convolution": [((48, 16, 3, 3), None, False)],
    "fused rows": [((64, 96), (64 * i, 64 * i + 64), False) for i in range(3)],
    "rows beside all rows": [((64, 96), (64, 128), False), ((192, 96), None, False)],
    "transposed": [((80, 128), None, True)],
}


def storage_shape(views):
    shape, rows, transposed = views[-1]
    if rows:
        return (rows[1], *shape[1:])
    return shape[::-1] if transposed else shape


@every_dtype
@pytest.mark.parametrize(("rank", "count"), [(1, 1), (4, 2), (16, 8), (64, 3), (256, 1), (256, 8)])
@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_a_merge_is_as_good_as_one_rounding(views, rank, count, dtype, generator):
    shape = storage_shape(views)
    table, delta = Table({}), torch.zeros(shape, dtype=torch.float64)
    tensors = [{} for _ in range(count)]
    strengths = [0.8 - 0.25 * i for i in range(count)]
    for number, (view, rows, transposed) in enumerate(views):
        target = Target("w", view, "unet", "w", rows, transposed)
        table.targets[f"m{number}"] = ModuleTargets(target, None)
        for parts, strength in zip(tensors, strengths, strict=True):
            std = std_for(rank, 0.003)
            own = thin_tensors(f"m{number}", view, rank, generator, std, torch.float16)
            parts |= own
            product = strength * product64(own, f"m{number}", view)
            delta[slice(*rows) if rows else slice(None)] += product.t() if transposed else product
    stack = [
        StackItem(lora_from_tensors(str(i), parts), strength)
        for i, (parts, strength) in enumerate(zip(tensors, strengths, strict=True))
    ]
    plan, base = make_plan(stack, table), normal(shape, generator, 0.03, dtype)
    weights = {"w": base.clone()}
    assert_fidelity(dict(patched_tensors(plan, weights))["w"], base, delta)
    assert torch.equal(bits(weights["w"]), bits(base))
    MergeLedger(weights, "residual").apply(plan)
    assert_fidelity(weights["w"], base, delta)


@every_dtype
def test_a_bias_is_as_good_as_one_rounding(dtype, generator):
    diff, base = normal((4000,), generator, 0.01), normal((4000,), generator, 0.03, dtype)
    table = Table({"m": ModuleTargets(None, Target("b", (4000,), "unet", "b"))})
    plan = make_plan([StackItem(lora_from_tensors("x", {"m.diff_b": diff}), -0.7)], table)
    merged = dict(patched_tensors(plan, {"b": base}))["b"]
    assert_fidelity(merged, base, -0.7 * diff.double())


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [(torch.float8_e4m3fn, 448.0), (torch.float8_e5m2, 57344.0)],
    ids=["e4m3fn", "e5m2"],
)
def test_fp8_is_clamped_to_its_range(dtype, largest):
    values = torch.tensor([1e6, -1e6, largest * 1.2, largest, -largest, float("inf")])
    expected = [largest, -largest, largest, largest, -largest, largest]
    assert rounded(values, dtype).float().tolist() == expected


@pytest.mark.parametrize("rung", ["full", "residual"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_merge_into_fp8_is_clamped_to_its_range(dtype, rung):
    largest = FORMATS[dtype][2]
    weights = {"m": torch.tensor([[largest, -largest]]).to(dtype)}
    lora = lora_from_tensors("x", {"m.diff": torch.tensor([[largest, -largest]])})
    plan = make_plan([StackItem(lora)], one_weight_table("m", (1, 2)))
    assert dict(patched_tensors(plan, weights))["m"].tolist() == [[largest, -largest]]
    ledger = MergeLedger(weights, rung)
    ledger.apply(plan)
    assert weights["m"].tolist() == [[largest, -largest]]


@every_dtype
def test_rounding_is_to_nearest_with_ties_to_even(dtype, generator):
    values = normal((4096,), generator, 3.0).double()
    step = ulp(values, dtype)
    ties = (torch.floor(values / step) + 0.5) * step
    for exact in (values, ties):
        narrow = rounded(exact.float(), dtype).double()
        assert torch.equal(narrow, correctly_rounded(exact.float().double(), dtype))


def test_worked_example(generator):
    """W = 1, up = (1, 2), down = (1, 0, -1), alpha / rank = 3, strength 1/2: W' = 1 + 1.5 u d."""
    lora = lora_from_tensors(
        "x",
        {
            "m.lora_down.weight": torch.tensor([[1.0, 0.0, -1.0]]),
            "m.lora_up.weight": torch.tensor([[1.0], [2.0]]),
            "m.alpha": torch.tensor(3.0),
        },
    )
    plan = make_plan([StackItem(lora, 0.5)], one_weight_table("m", (2, 3)))
    merged = dict(patched_tensors(plan, {"m": torch.ones(2, 3)}))["m"]
    assert merged.tolist() == [[2.5, 1.0, -0.5], [4.0, 1.0, -2.0]]


def test_row_chunks_cover_all_rows_once_in_order(monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 20)
    for shape in ((7, 5), (1, 100), (3, 2, 3, 3), (45,), (4, 20), (40, 1)):
        chunks = list(row_chunks(shape))
        assert chunks[0][0] == 0
        assert chunks[-1][1] == shape[0]
        assert all(a[1] == b[0] for a, b in pairwise(chunks))
        columns = math.prod(shape[1:])
        assert all((stop - start) * columns <= max(20, columns) for start, stop in chunks)


@pytest.mark.parametrize("size", [20, 36, 1 << 19], ids=str)
def test_any_cut_into_rows_adds_the_same_delta(size, generator, monkeypatch):
    shape = (9, 6)
    tensors = thin_tensors("m", shape, 3, generator)
    plan = make_plan([StackItem(lora_from_tensors("x", tensors))], one_weight_table("m", shape))
    update = fuse(plan.terms["m"], shape, lambda t: t.lora.adapter(t.module, t.part))
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", size)
    base = normal(shape, generator)
    expected = base.double() + product64(tensors, "m", shape)
    for start, stop in row_chunks(shape):
        rows = merged_rows(base[start:stop], update, start, torch.float32)
        torch.testing.assert_close(rows.double(), expected[start:stop], rtol=1e-6, atol=1e-6)
        delta = update.delta(start, stop, 6).double()
        torch.testing.assert_close(delta, (expected - base)[start:stop], rtol=1e-5, atol=1e-6)


def test_merging_rows_leaves_the_base_alone(generator):
    base = normal((4, 3), generator)
    before = bits(base)
    plan = make_plan(
        [StackItem(lora_from_tensors("x", {"m.diff": torch.ones(4, 3)}))],
        one_weight_table("m", (4, 3)),
    )
    update = fuse(plan.terms["m"], (4, 3), lambda t: t.lora.adapter(t.module, t.part))
    assert torch.equal(merged_rows(base, update, 0, torch.float32), base + 1)
    assert torch.equal(bits(base), before)


@every_dtype
@pytest.mark.parametrize("rung", ["full", "file"])
def test_copies_have_the_bits_of_the_ledger(rung, dtype, generator, monkeypatch, tmp_path):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 20)
    weights, _ = toy_weights(generator, dtype)
    write_safetensors(tmp_path / "base.safetensors", weights)
    before = {key: bits(weight) for key, weight in weights.items()}
    plan = toy_plan(*((lora, 0.6) for lora in toy_loras(generator)))
    copies = dict(patched_tensors(plan, weights))
    assert same_bits({key: bits(weight) for key, weight in weights.items()}, before)
    files = base_files(open_safetensors(tmp_path / "base.safetensors"))
    MergeLedger(weights, rung, files).apply(plan)
    assert same_bits({k: bits(t) for k, t in copies.items()}, {k: bits(weights[k]) for k in copies})


def test_copies_keep_dtype_and_layout_and_can_be_trained_on(generator):
    weight = normal((6, 4, 3, 3), generator, dtype=torch.bfloat16)
    weights = {"m": weight.contiguous(memory_format=torch.channels_last).requires_grad_()}
    lora = lora_from_tensors("x", thin_tensors("m", (6, 4, 3, 3), 2, generator))
    plan = make_plan([StackItem(lora)], one_weight_table("m", (6, 4, 3, 3)))
    patched = dict(patched_tensors(plan, weights))["m"]
    assert patched.dtype == torch.bfloat16
    assert patched.is_contiguous(memory_format=torch.channels_last)
    (patched.requires_grad_() * 2).sum().backward()
