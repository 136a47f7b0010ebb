"""DoRA: numbers by hand, the definition in float64, PEFT, and the laws of the ledger."""

import json

import peft
import pytest
import torch
from torch import nn

from lora_workbench.lora_core.adapters import DoraAdapter, LoraAdapter
from lora_workbench.lora_core.adapters.dora import magnitude_axis
from lora_workbench.lora_core.binding import bind
from lora_workbench.lora_core.errors import LoraError, ShapeMismatchError
from lora_workbench.lora_core.explain import FITS, explain
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.norms import block_norms
from lora_workbench.lora_core.patching import fused
from lora_workbench.lora_core.patching.copies import patched_tensors
from lora_workbench.lora_core.patching.fused import fuse
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.patching.merge_file import merge_checkpoint
from lora_workbench.lora_core.stack import StackItem, make_plan

from .toy_model import (
    CHUNK_ELEMENTS,
    MERGEABLE,
    TARGETS,
    all_bits,
    assert_every_state_is_a_clean_merge,
    bits,
    dora64,
    normal,
    one_weight_table,
    product64,
    same_bits,
    thin_tensors,
    toy_dora,
    toy_lora,
    toy_plan,
    toy_weights,
    with_magnitudes,
)

ROUNDING = {torch.float32: 2**-22, torch.float16: 2**-11, torch.bfloat16: 2**-8}
every_axis = pytest.mark.parametrize("axis", [0, 1], ids=["outputs", "inputs"])


def merged(tensors, base, strength=1.0, name="m", header=None, **view):
    """The one weight ``name``, stored as ``base``, with a file of ``tensors`` merged into it."""
    shape = view.pop("shape", tuple(base.shape))
    plan = make_plan(
        [StackItem(lora_from_tensors("x", tensors, header), strength)],
        one_weight_table(name, shape, **view),
    )
    return dict(patched_tensors(plan, {name: base}))[name]


def factors(down, up, magnitude):
    return {
        "m.lora_down.weight": torch.tensor(down),
        "m.lora_up.weight": torch.tensor(up),
        "m.dora_scale": torch.tensor(magnitude),
    }


def test_worked_example_by_outputs():
    """V = [[3, 4], [0, 2]] has rows of norm 5 and 2; they become 10 and 1."""
    base = torch.tensor([[3.0, 3.0], [0.0, 2.0]])
    tensors = factors([[0.0, 1.0]], [[1.0], [0.0]], [[10.0], [1.0]])
    torch.testing.assert_close(merged(tensors, base), torch.tensor([[6.0, 8.0], [0.0, 1.0]]))
    half = torch.tensor([[4.5, 5.5], [0.0, 1.5]])
    torch.testing.assert_close(merged(tensors, base, 0.5), half)


def test_worked_example_by_inputs():
    """V = [[3, 4], [4, 3]] has columns of norm 5; they become 10 and 5."""
    base = torch.tensor([[3.0, 3.0], [4.0, 3.0]])
    tensors = factors([[0.0, 1.0]], [[1.0], [0.0]], [[10.0, 5.0]])
    torch.testing.assert_close(merged(tensors, base), torch.tensor([[6.0, 4.0], [8.0, 3.0]]))


def test_alpha_scales_the_change_before_the_norm_is_taken():
    """Rank 1, alpha 2: V = [[3, 4]], so [[6, 8]]."""
    tensors = factors([[0.0, 1.0]], [[1.0]], [[10.0]]) | {"m.alpha": torch.tensor(2.0)}
    got = merged(tensors, torch.tensor([[3.0, 2.0]]))
    torch.testing.assert_close(got, torch.tensor([[6.0, 8.0]]))


VIEWS = {
    "linear": ((96, 80), {}),
    "1x1 convolution": ((48, 40, 1, 1), {}),
    "3x3 convolution": ((24, 16, 3, 3), {}),
    "rows of a storage": ((32, 40), {"rows": (32, 64)}),
    "transposed": ((40, 48), {"transposed": True}),
}


@every_axis
@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("shape", "view"), VIEWS.values(), ids=VIEWS)
def test_a_merge_is_the_definition_in_float64(shape, view, dtype, strength, axis, generator):
    """In several row chunks; only rows that the file addresses change."""
    storage = (96, *shape[1:]) if "rows" in view else shape
    base = normal(storage[::-1] if "transposed" in view else storage, generator, 0.5, dtype)
    tensors = thin_tensors("m", shape, 4, generator)
    tensors = with_magnitudes(tensors, "m", shape, generator, axis)
    own = slice(*view.get("rows", (None, None)))
    seen = base.t() if "transposed" in view else base[own]
    change = strength * dora64(tensors, "m", seen)
    exact = base.double()
    exact[own] += change.t() if "transposed" in view else change
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CHUNK_ELEMENTS", 1000)
        got = merged(tensors, base, strength, shape=shape, **view)
    assert got.dtype == dtype
    assert (got.double() - exact).norm() <= ROUNDING[dtype] * exact.norm()
    rest = torch.ones(len(base), dtype=torch.bool)
    rest[own] = False
    assert torch.equal(bits(got[rest]), bits(base[rest]))


@every_axis
@pytest.mark.parametrize("shape", [(7, 5), (6, 4, 3, 3)], ids=["linear", "convolution"])
def test_the_adapters_own_delta_is_that_of_the_merge(shape, axis, generator):
    tensors = with_magnitudes(thin_tensors("m", shape, 2, generator), "m", shape, generator, axis)
    base, lora = normal(shape, generator, 0.5), lora_from_tensors("x", tensors)
    (module,) = lora.modules.values()
    adapter = lora.adapter(module, module.parts[0])
    assert adapter.axis == axis
    delta = adapter.delta(base)
    torch.testing.assert_close(delta.double(), dora64(tensors, "m", base), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged(tensors, base), base + delta)


@every_axis
def test_magnitudes_that_are_the_norms_leave_the_plain_lora(axis, generator):
    shape = (24, 16)
    tensors, base = thin_tensors("m", shape, 3, generator), normal(shape, generator, 0.5)
    patched = base + product64(tensors, "m", shape).float()
    norms = {"m.dora_scale": patched.norm(dim=1 - axis, keepdim=True)}
    torch.testing.assert_close(merged(tensors | norms, base), merged(tensors, base))


def test_a_row_of_zeros_stays_one(generator):
    tensors = factors([[1.0, 1.0]], [[1.0], [0.0]], [[1.0], [1.0]])
    assert merged(tensors, torch.zeros(2, 2))[1].tolist() == [0.0, 0.0]


def test_moving_copies_every_tensor():
    adapter = DoraAdapter(
        LoraAdapter(torch.ones(1, 3), torch.ones(2, 1), None, 4.0), torch.ones(2, 1), 0
    )
    moved = adapter.to("cpu")
    assert (moved.axis, moved.scale, len(moved.tensors())) == (0, 4.0, 3)
    places = {t.data_ptr() for t in adapter.tensors()}
    assert places.isdisjoint(t.data_ptr() for t in moved.tensors())


# stored shape, outputs, inputs -> axis under LyCORIS' name, axis under PEFT's
STORED = {
    "outputs of a linear layer": ((8, 1), 8, 6, 0, 0),
    "inputs of a linear layer": ((1, 6), 8, 6, 1, None),
    "inputs of a square one": ((1, 8), 8, 8, 1, 0),
    "outputs of a kernel": ((8, 1, 1, 1), 8, 6, 0, 0),
    "inputs of a kernel": ((1, 6, 1, 1), 8, 6, 1, None),
    "flat outputs": ((8,), 8, 6, 0, 0),
    "flat inputs": ((6,), 8, 6, 1, None),
    "flat and square": ((8,), 8, 8, 0, 0),
    "PEFT's kernel": ((1, 8, 1, 1), 8, 6, None, 0),
    "another size": ((5, 1), 8, 6, None, None),
    "a matrix": ((8, 6), 8, 6, None, None),
    "inputs in the wrong place": ((1, 1, 6, 1), 8, 6, None, None),
    "one number": ((), 8, 6, None, None),
    "one output": ((1, 6), 1, 6, 1, None),
}


@pytest.mark.parametrize(
    ("shape", "outputs", "inputs", "either", "outputs_only"), STORED.values(), ids=STORED
)
def test_the_axis_is_told_by_shape_and_name(shape, outputs, inputs, either, outputs_only):
    assert magnitude_axis(shape, outputs, inputs, may_be_inputs=True) == either
    assert magnitude_axis(shape, outputs, inputs, may_be_inputs=False) == outputs_only


SPELLINGS = {
    "kohya, LyCORIS": ("m.lora_down.weight", "m.lora_up.weight", "m.dora_scale"),
    "PEFT": ("m.lora_A.weight", "m.lora_B.weight", "m.lora_magnitude_vector"),
    "PEFT .weight": ("m.lora_A.weight", "m.lora_B.weight", "m.lora_magnitude_vector.weight"),
    "PEFT with an adapter's name": (
        "m.lora_A.default.weight",
        "m.lora_B.default.weight",
        "m.lora_magnitude_vector.default.weight",
    ),
    "PEFT's older name of it": (
        "m.lora_A.default.weight",
        "m.lora_B.default.weight",
        "m.lora_magnitude_vector.default",
    ),
    "diffusers": ("m.lora.down.weight", "m.lora.up.weight", "m.lora_magnitude_vector"),
    "ai-toolkit": ("m.lora_A.weight", "m.lora_B.weight", "m.magnitude"),
}


@pytest.mark.parametrize("names", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_is_read(names, generator):
    """Flat magnitudes, as PEFT and ai-toolkit store them."""
    shape, base = (8, 6), normal((8, 6), generator, 0.5)
    tensors = thin_tensors("m", shape, 2, generator)
    tensors["m.alpha"] = torch.tensor(2.0)  # scale 1, as where no alpha is stored
    tensors = with_magnitudes(tensors, "m", shape, generator)
    down, up, magnitude = names
    spelled = {
        down: tensors["m.lora_down.weight"],
        up: tensors["m.lora_up.weight"],
        magnitude: tensors["m.dora_scale"].flatten(),
    }
    exact = base.double() + dora64(tensors, "m", base)
    torch.testing.assert_close(merged(spelled, base).double(), exact, rtol=1e-5, atol=1e-6)


def test_factors_of_a_kernel_may_be_flat(generator):
    shape, base = (6, 4, 3, 3), normal((6, 4, 3, 3), generator, 0.5)
    tensors = with_magnitudes(thin_tensors("m", shape, 2, generator), "m", shape, generator)
    exact = base.double() + dora64(tensors, "m", base)
    tensors["m.lora_down.weight"] = tensors["m.lora_down.weight"].flatten(1)
    torch.testing.assert_close(merged(tensors, base).double(), exact, rtol=1e-5, atol=1e-6)


def test_a_tucker_core_is_part_of_the_change(generator):
    shape, base = (6, 4, 3, 3), normal((6, 4, 3, 3), generator, 0.5)
    tensors = thin_tensors("m", shape, 2, generator, tucker=True)
    tensors = with_magnitudes(tensors, "m", shape, generator, 1)
    exact = base.double() + dora64(tensors, "m", base)
    torch.testing.assert_close(merged(tensors, base).double(), exact, rtol=1e-5, atol=1e-6)


REFUSED = {
    "a size of neither": ({"m.dora_scale": torch.ones(5, 1)}, "neither one per output nor"),
    "a matrix": ({"m.dora_scale": torch.ones(8, 6)}, "neither one per output nor"),
    "integers": ({"m.dora_scale": torch.ones(8, 1, dtype=torch.int64)}, "holds torch.int64"),
}


@pytest.mark.parametrize(("magnitude", "reason"), REFUSED.values(), ids=REFUSED)
def test_magnitudes_that_do_not_fit_are_named(magnitude, reason, generator):
    tensors = thin_tensors("m", (8, 6), 2, generator) | magnitude
    (module,) = lora_from_tensors("x", tensors).modules.values()
    assert reason in module.problem
    with pytest.raises(LoraError, match=reason):
        merged(tensors, torch.ones(8, 6))


def test_magnitudes_without_factors_are_named():
    (module,) = lora_from_tensors("x", {"m.dora_scale": torch.ones(8, 1)}).modules.values()
    assert module.problem == "no factors stand beside m.dora_scale"


def test_a_dora_of_another_kind_is_not_applied_as_a_plain_one():
    tensors = {"m.ia3_l": torch.ones(2), "m.dora_scale": torch.ones(2, 1)}
    (module,) = lora_from_tensors("x", tensors).modules.values()
    assert module.problem == "ia3 modules are not supported yet"


def test_no_norm_is_taken_of_a_weight_with_more_inputs_than_were_trained(generator):
    """An inpainting model's first convolution: the other channels have norms of their own."""
    name, shape = "input_blocks.0.0.weight", (6, 4, 3, 3)
    tensors = thin_tensors(name, shape, 2, generator)
    assert merged(tensors, torch.ones(6, 9, 3, 3), name=name).shape == (6, 9, 3, 3)
    for axis in (0, 1):
        with pytest.raises(ShapeMismatchError):
            merged(
                with_magnitudes(tensors, name, shape, generator, axis),
                torch.ones(6, 9, 3, 3),
                name=name,
            )


def test_nan_in_a_magnitude_is_refused(generator):
    tensors = thin_tensors("m", (8, 6), 2, generator) | {
        "m.dora_scale": torch.full((8, 1), torch.nan)
    }
    with pytest.raises(LoraError, match="dora_scale holds NaN"):
        merged(tensors, torch.ones(8, 6))


PEFT_MODULES = {
    "linear": lambda: nn.Linear(80, 96),
    "square": lambda: nn.Linear(64, 64),
    "convolution": lambda: nn.Conv2d(16, 24, 3),
    "1x1 convolution": lambda: nn.Conv2d(32, 32, 1),
}


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha / rank", "rsLoRA"])
@pytest.mark.parametrize("build", PEFT_MODULES.values(), ids=PEFT_MODULES)
def test_merged_weights_are_those_of_peft(build, rslora, generator):
    config = peft.LoraConfig(
        r=4, lora_alpha=3, target_modules=["m"], use_dora=True, use_rslora=rslora
    )
    model = peft.inject_adapter_in_model(config, nn.ModuleDict({"m": build()}))
    for name, parameter in model.named_parameters():
        if "lora_magnitude" in name:  # starts at the norms
            parameter.data *= 1 + 0.1 * torch.randn(parameter.shape, generator=generator)
        elif "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    base = model["m"].base_layer.weight.detach().clone()
    tensors = {k: v.detach().clone() for k, v in peft.get_peft_model_state_dict(model).items()}
    assert any("lora_magnitude_vector" in key for key in tensors)
    model["m"].merge()
    fields = {"r": 4, "lora_alpha": 3, "use_rslora": rslora, "use_dora": True}
    ours = merged(tensors, base, header={"lora_adapter_metadata": json.dumps(fields)})
    torch.testing.assert_close(ours, model["m"].base_layer.weight.detach(), rtol=1e-5, atol=1e-6)


# ----- stacks -----


def dora_files(generator, count=2):
    """Files for the one weight ``m`` of (24, 16), of alternating axes, and their tensors."""
    shape = (24, 16)
    files = [
        with_magnitudes(thin_tensors("m", shape, 2, generator), "m", shape, generator, i % 2)
        for i in range(count)
    ]
    return [lora_from_tensors(str(i), tensors) for i, tensors in enumerate(files)], files


def test_a_stack_is_the_sum_of_what_each_does_to_the_base(generator):
    loras, files = dora_files(generator, 4)
    plain, diff = thin_tensors("m", (24, 16), 3, generator), normal((24, 16), generator, 0.1)
    loras += [lora_from_tensors("plain", plain), lora_from_tensors("diff", {"m.diff": diff})]
    base, strengths = normal((24, 16), generator, 0.5), [1.0, 0.7, -0.4, 0.5, 0.8, 0.3]
    exact = base.double() + 0.8 * product64(plain, "m", (24, 16)) + 0.3 * diff.double()
    for tensors, strength in zip(files, strengths, strict=False):
        exact += strength * dora64(tensors, "m", base)
    items = [StackItem(lora, m) for lora, m in zip(loras, strengths, strict=True)]
    table, found = one_weight_table("m", (24, 16)), []
    for order in (items, items[::-1]):
        found.append(dict(patched_tensors(make_plan(order, table), {"m": base}))["m"])
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-5, atol=2e-6)
    assert torch.equal(bits(found[0]), bits(found[1]))


def test_equal_files_are_one_term_of_the_summed_strength(generator):
    (lora, _), _ = dora_files(generator)
    table, base = one_weight_table("m", (24, 16)), normal((24, 16), generator, 0.5)
    twice = make_plan([StackItem(lora, 0.25), StackItem(lora, 0.5)], table)
    once = make_plan([StackItem(lora, 0.75)], table)
    results = [dict(patched_tensors(plan, {"m": base}))["m"] for plan in (twice, once)]
    assert torch.equal(*map(bits, results))


def test_the_base_is_read_in_chunks_once_for_all_magnitudes(generator, monkeypatch):
    loras, _ = dora_files(generator, 3)
    plan = make_plan([StackItem(lora) for lora in loras], one_weight_table("m", (24, 16)))
    update = fuse(plan.terms["m"], (24, 16), lambda t: t.lora.adapter(t.module, t.part))
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 100)
    base, read = normal((24, 16), generator), []

    def rows(start, stop):
        read.append((start, stop))
        return base[start:stop]

    assert update.depends_on_base
    ready = update.measured(rows, (24, 16))
    assert read == [(start, start + 6) for start in range(0, 24, 6)]
    assert ready.ranks() == ((0, 24, 6),)  # three products of rank 2, none of full rank
    assert ready.measured(rows, (24, 16)).ranks() == ready.ranks()
    assert len(read) == 4


# ----- merging and un-merging -----


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", CHUNK_ELEMENTS)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rung", ["full", "file", "residual", "auto"])
@pytest.mark.parametrize("dtype", MERGEABLE, ids=str)
def test_merge_change_add_remove_unmerge(rung, dtype, generator, tmp_path):
    loras = [toy_dora("d", generator), toy_dora("e", generator)]
    loras.append(toy_lora("a", {"linear": 2, "conv": 3, "k": 1, "projection": 2}, generator))
    assert_every_state_is_a_clean_merge(loras, rung, dtype, generator, tmp_path)


@pytest.mark.usefixtures("small_chunks")
def test_a_copy_is_kept_where_the_delta_needs_the_base(generator):
    weights, _ = toy_weights(generator, torch.float16)
    base, dora = all_bits(weights), toy_dora("d", generator)
    plain = toy_lora("a", {"linear": 2, "conv": 2}, generator)
    ledger = MergeLedger(weights, "residual")
    ledger.apply(toy_plan((plain, 1.0)))
    assert set(ledger.rungs()) == {"residual"}
    ledger.apply(toy_plan((plain, 1.0), (dora, 1.0)))
    assert ledger.rungs() == {"full": 4, "residual": 2}  # bias and norm carry differences
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", MERGEABLE, ids=str)
def test_copies_and_files_have_the_bits_of_the_ledger(dtype, generator, tmp_path):
    weights, _ = toy_weights(generator, dtype)
    write_safetensors(tmp_path / "base.safetensors", weights)
    plan = toy_plan((toy_dora("d", generator), 0.6), (toy_dora("e", generator), 0.3))
    copies = all_bits(dict(patched_tensors(plan, weights)))
    source = open_safetensors(tmp_path / "base.safetensors")
    changed = merge_checkpoint(source, plan, tmp_path / "merged.safetensors")
    merged_file = open_safetensors(tmp_path / "merged.safetensors").read_many(changed)
    MergeLedger(weights, "full").apply(plan)
    expected = {key: bits(weights[key]) for key in plan.terms}
    assert same_bits(copies, expected)
    assert same_bits(all_bits(merged_file), expected)


# ----- reports -----


def test_a_dora_is_a_usable_kind(generator):
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = thin_tensors(name, (320, 768), 2, generator)
    tensors = with_magnitudes(tensors, name, (320, 768), generator, 1)
    report = explain(lora_from_tensors("x", tensors))
    assert (report.family, report.verdict) == ("sd15", FITS)
    assert [row["kind"] for row in report.to_json()["modules"]] == ["dora"]
    assert {row.rule for row in report.rows} == {"magnitude * (W0 + scale * up @ down) / its norm"}
    assert report.notes() == []


def test_what_may_surprise_is_a_note(generator):
    """Flat magnitudes of a square weight, which other programs read as of inputs."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = thin_tensors(name, (320, 320), 2, generator)
    tensors[f"{name}.dora_scale"] = torch.ones(320)
    notes = " ".join(explain(lora_from_tensors("x", tensors)).notes())
    assert "flat DoRA magnitudes" in notes
    assert "ComfyUI's own loader" in notes


def test_the_norm_by_block_counts_the_product_alone(generator):
    shape = TARGETS["linear"].weight.shape
    tensors = thin_tensors("linear", shape, 2, generator)
    doras = with_magnitudes(tensors, "linear", shape, generator)
    table = one_weight_table("linear", shape)
    norms = []
    for file in (tensors, doras):
        lora = lora_from_tensors("x", file)
        norms.append(block_norms(StackItem(lora, 0.5), bind(lora, table)))
    assert norms[0] == norms[1]
