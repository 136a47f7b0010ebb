"""LoHa, LoKr and OFT: numbers by hand, the definitions in float64, and the laws of the ledger."""

import pytest
import torch

from lora_workbench.lora_core.adapters import LohaAdapter, LokrAdapter, OftAdapter
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

from .kind_cases import boft, change64, loha, lokr, oft, toy_kinds
from .toy_model import (
    CHUNK_ELEMENTS,
    MERGEABLE,
    TARGETS,
    all_bits,
    assert_every_state_is_a_clean_merge,
    bits,
    normal,
    one_weight_table,
    product64,
    same_bits,
    thin_tensors,
    toy_lora,
    toy_plan,
    toy_weights,
    with_magnitudes,
)

ROUNDING = {torch.float32: 2**-21, torch.float16: 2**-11, torch.bfloat16: 2**-8}
LINEAR, KERNEL = (48, 36), (24, 18, 3, 3)
FORMS = {
    "loha": (loha, {}),
    "loha tucker": (loha, {"tucker": True}),
    "lokr full": (lokr, {}),
    "lokr first of factors": (lokr, {"first": "factors"}),
    "lokr second of factors": (lokr, {"second": "factors"}),
    "lokr both of factors": (lokr, {"first": "factors", "second": "factors"}),
    "lokr tucker": (lokr, {"second": "tucker"}),
    "lokr both of factors, tucker": (lokr, {"first": "factors", "second": "tucker"}),
    "lokr of one block": (lokr, {"sizes": (1, 1), "second": "factors"}),
    "oft": (oft, {}),
    "oft of odd blocks": (oft, {"size": 3}),
    "oft constrained": (oft, {"alpha": 0.01}),
    "oft hardly constrained": (oft, {"alpha": 100.0}),
    "oft rescaled": (oft, {"rescale": True}),
    "boft": (boft, {"size": 6}),
    "boft of one stage": (boft, {"size": 48}),
    "boft constrained, rescaled": (boft, {"size": 6, "alpha": 0.01, "rescale": True}),
}
every_form = pytest.mark.parametrize(("build", "options"), FORMS.values(), ids=FORMS)


def merged(tensors, base, strength=1.0, name="m", **view):
    """The one weight ``name``, stored as ``base``, with a file of ``tensors`` merged into it."""
    shape = view.pop("shape", tuple(base.shape))
    plan = make_plan(
        [StackItem(lora_from_tensors("x", tensors), strength)],
        one_weight_table(name, shape, **view),
    )
    return dict(patched_tensors(plan, {name: base}))[name]


def of_shape(build, options, shape, generator):
    """A file of a form; blocks that fit ``shape``."""
    options = dict(options)
    if build is boft:
        options["size"] = min(options["size"], shape[0])
    return build("m", shape, generator, **options)


# ----- by hand -----


def test_loha_by_hand():
    """([[1], [2]] @ [[1, 3]]) * ([[2], [1]] @ [[1, 1]]) = [[2, 6], [2, 6]]; alpha 2, rank 1."""
    adapter = LohaAdapter(
        *(torch.tensor(t) for t in ([[1.0], [2.0]], [[1.0, 3.0]], [[2.0], [1.0]], [[1.0, 1.0]])),
        alpha=2.0,
    )
    assert adapter.delta(torch.zeros(2, 2)).tolist() == [[4.0, 12.0], [4.0, 12.0]]


def test_lokr_by_hand():
    """kron([[1, 2]], [[1], [3]]) = [[1, 2], [3, 6]]; of two full matrices alpha says nothing."""
    adapter = LokrAdapter(
        w1=torch.tensor([[1.0, 2.0]]), w2=torch.tensor([[1.0], [3.0]]), alpha=9999999999.0
    )
    assert adapter.scale == 1.0
    assert adapter.delta(torch.zeros(2, 2)).tolist() == [[1.0, 2.0], [3.0, 6.0]]


def test_oft_by_hand():
    """Q = [[0, 1], [-1, 0]] makes R = [[0, 1], [-1, 0]]; R^T takes (x, y) to (-y, x)."""
    blocks = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    base = torch.tensor([[1.0, 3.0], [2.0, 5.0]])
    turned = base + OftAdapter(blocks).delta(base)
    torch.testing.assert_close(turned, torch.tensor([[-2.0, -5.0], [1.0, 3.0]]))
    half = base + OftAdapter(blocks).rotation(0.5).change(base)
    torch.testing.assert_close(half, torch.tensor([[-0.5, -1.0], [1.5, 4.0]]))


def test_a_constraint_bounds_all_blocks_together_and_counts_in_outputs():
    """|Q| is 2 of two blocks; alpha 0.25 of 4 outputs halves Q: tan(turn / 2) = 1/2."""
    blocks = torch.zeros(2, 2, 2)
    blocks[:, 0, 1] = 1.0
    turned = OftAdapter(blocks, alpha=0.25).rotation().turns[0] + torch.eye(2)
    expected = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).expand(2, 2, 2)
    torch.testing.assert_close(turned, expected)
    free = OftAdapter(blocks, alpha=0.5).rotation().turns[0] + torch.eye(2)
    torch.testing.assert_close(free, torch.tensor([[0.0, -1.0], [1.0, 0.0]]).expand(2, 2, 2))


def test_a_turn_keeps_the_length_of_every_column(generator):
    base = normal((24, 18), generator)
    for build in (oft, boft):
        tensors = build("m", (24, 18), generator, size=4 if build is oft else 6, std=1.0)
        turned = merged(tensors, base)
        torch.testing.assert_close(turned.norm(dim=0), base.norm(dim=0))
        assert (turned - base).norm() > 0.5 * base.norm()


def test_strength_0_is_the_base_and_a_small_one_little(generator):
    """So that a schedule or a weighting that goes to 0 does not jump at its end."""
    base = normal((24, 18), generator)
    for build in (oft, boft):
        tensors = build("m", (24, 18), generator, size=6, rescale=True)
        small = merged(tensors, base, 1e-3) - base
        assert 0 < small.norm() < 5e-3 * base.norm()


def test_of_a_small_turn_no_digit_is_lost(generator):
    base = normal((24, 18), generator)
    tensors = oft("m", (24, 18), generator, std=1.0)
    tensors["m.oft_blocks"] = tensors["m.oft_blocks"].float() * 1e-6
    exact = change64(tensors, "m", base)
    (module,) = (lora := lora_from_tensors("x", tensors)).modules.values()
    delta = lora.adapter(module, module.parts[0]).delta(base)
    assert (delta.double() - exact).norm() <= 1e-6 * exact.norm()


# ----- the definitions -----


@pytest.mark.parametrize("shape", [LINEAR, (*LINEAR, 1, 1), KERNEL], ids=["linear", "1x1", "3x3"])
@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@every_form
def test_a_merge_is_the_definition_in_float64(build, options, dtype, strength, shape, generator):
    """In several row chunks; conv factors are stored flat where the writer stores them so."""
    tensors = of_shape(build, options, shape, generator)
    base = normal(shape, generator, 0.5, dtype)
    exact = base.double() + change64(tensors, "m", base, strength)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CHUNK_ELEMENTS", 1000)
        got = merged(tensors, base, strength)
    assert got.dtype == dtype
    assert (got.double() - exact).norm() <= ROUNDING[dtype] * exact.norm()


@pytest.mark.parametrize(
    ("build", "options"), [FORMS[form] for form in FORMS if "tucker" not in form]
)
def test_rows_of_a_storage_and_a_transposed_one(build, options, generator):
    shape = LINEAR
    tensors = of_shape(build, options, shape, generator)
    whole, seen = normal((144, 36), generator, 0.5), normal(shape, generator, 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CHUNK_ELEMENTS", 1000)
        rows = merged(tensors, whole, 0.6, shape=shape, rows=(48, 96))
        turned = merged(tensors, seen.t().contiguous(), 0.6, shape=shape, transposed=True)
    exact = whole.double()
    exact[48:96] += change64(tensors, "m", whole[48:96], 0.6)
    assert (rows.double() - exact).norm() <= 2**-21 * exact.norm()
    assert torch.equal(bits(rows[:48]), bits(whole[:48]))
    assert torch.equal(bits(rows[96:]), bits(whole[96:]))
    exact = seen.double() + change64(tensors, "m", seen, 0.6)
    assert (turned.t().double() - exact).norm() <= 2**-21 * exact.norm()


@every_form
def test_the_adapters_own_delta_is_that_of_the_merge(build, options, generator):
    tensors = of_shape(build, options, KERNEL, generator)
    base, lora = normal(KERNEL, generator, 0.5), lora_from_tensors("x", tensors)
    (module,) = lora.modules.values()
    adapter = lora.adapter(module, module.parts[0]).to("cpu")
    torch.testing.assert_close(merged(tensors, base), base + adapter.delta(base))
    stored = {tensors[key].data_ptr() for key in module.parts[0].keys.values()}
    assert stored.isdisjoint(tensor.data_ptr() for tensor in adapter.tensors())
    assert len(adapter.tensors()) == len(module.parts[0].keys)


@pytest.mark.parametrize("axis", [0, 1], ids=["outputs", "inputs"])
@pytest.mark.parametrize("shape", [LINEAR, KERNEL], ids=["linear", "3x3"])
@pytest.mark.parametrize("form", [name for name, (build, _) in FORMS.items() if "oft" not in name])
def test_magnitudes_over_loha_and_lokr(form, shape, axis, generator):
    build, options = FORMS[form]
    base = normal(shape, generator, 0.5)
    tensors = of_shape(build, options, shape, generator)
    tensors = with_magnitudes(tensors, "m", shape, generator, axis)
    (module,) = lora_from_tensors("x", tensors).modules.values()
    assert module.kind == f"{form.split()[0]}+dora"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CHUNK_ELEMENTS", 1000)
        for strength in (1.0, -0.6):
            exact = base.double() + change64(tensors, "m", base, strength)
            got = merged(tensors, base, strength)
            assert (got.double() - exact).norm() <= 2**-21 * exact.norm()


def test_alpha_0_is_alpha_rank_and_no_alpha_too(generator):
    for tensors in (loha("m", (6, 4), generator), lokr("m", (6, 4), generator, second="factors")):
        base, bare = torch.zeros(6, 4), {k: v for k, v in tensors.items() if "alpha" not in k}
        rank = tensors["m.hada_w1_b" if "m.hada_w1_b" in tensors else "m.lokr_w2_b"].shape[0]
        expected = merged(bare | {"m.alpha": torch.tensor(float(rank))}, base)
        for file in (bare, bare | {"m.alpha": torch.tensor(0.0)}):
            assert torch.equal(merged(file, base), expected)


def test_the_scale_of_a_lokr_counts_in_the_rank_of_its_factors(generator):
    """Of the second matrix where both have factors, as in LyCORIS and ComfyUI."""
    for first, second, expected in (
        ("full", "full", 1.0),
        ("full", "factors", 1.3 / 2),
        ("factors", "full", 1.3 / 2),
        ("factors", "factors", 1.3 / 2),
    ):
        lora = lora_from_tensors("x", lokr("m", (6, 4), generator, first, second))
        (module,) = lora.modules.values()
        adapter = lora.adapter(module, module.parts[0])
        assert adapter.scale == module.scale == pytest.approx(expected)
    assert module.rank == 2


def test_a_lora_of_a_first_convolution_with_more_channels_is_refused(generator):
    name, shape = "input_blocks.0.0.weight", (6, 4, 3, 3)
    for build in (loha, lokr):
        with pytest.raises(ShapeMismatchError):
            merged(build(name, shape, generator), torch.ones(6, 9, 3, 3), name=name)


def test_magnitudes_of_a_kernel_are_held_against_its_inputs(generator):
    """Flat factors (3, 162) do not tell 18 inputs of 9 from 9 of 18."""
    tensors = loha("m", KERNEL, generator)
    base = torch.ones(KERNEL)
    merged(tensors | {"m.dora_scale": torch.ones(1, 18, 1, 1)}, base)
    with pytest.raises(ShapeMismatchError):
        merged(tensors | {"m.dora_scale": torch.ones(1, 9, 1, 1)}, base)


# ----- files that do not fit together -----

ONE = torch.ones
DAMAGED = {
    "a factor missing": ({"hada_w1_a": ONE(6, 2), "hada_w1_b": ONE(2, 4)}, "factor is missing"),
    "two products of two sizes": (
        {
            "hada_w1_a": ONE(6, 2),
            "hada_w1_b": ONE(2, 4),
            "hada_w2_a": ONE(6, 2),
            "hada_w2_b": ONE(2, 5),
        },
        "two products disagree",
    ),
    "two ranks": (
        {
            "hada_w1_a": ONE(6, 2),
            "hada_w1_b": ONE(3, 4),
            "hada_w2_a": ONE(6, 2),
            "hada_w2_b": ONE(2, 4),
        },
        "disagree on the rank",
    ),
    "one core": (
        {f"hada_w{n}_{s}": ONE(2, 4) for n in "12" for s in "ab"} | {"hada_t1": ONE(2, 2, 3, 3)},
        "one of the Tucker cores",
    ),
    "half a lokr": ({"lokr_w1": ONE(2, 2)}, "lokr_w2 factor is missing"),
    "lokr twice": (
        {
            "lokr_w1": ONE(2, 2),
            "lokr_w2": ONE(3, 2),
            "lokr_w2_a": ONE(3, 1),
            "lokr_w2_b": ONE(1, 2),
        },
        "beside its own factors",
    ),
    "a core of w1": (
        {"lokr_w1": ONE(2, 2), "lokr_w2": ONE(3, 2), "lokr_t1": ONE(2, 2, 3, 3)},
        "not known from any writer",
    ),
    "blocks that are not square": ({"oft_blocks": ONE(3, 2, 4)}, "not square"),
    "no butterfly": ({"oft_blocks": ONE(3, 2, 3, 3)}, "no butterfly"),
    "rescale of another size": ({"oft_blocks": ONE(3, 2, 2), "rescale": ONE(5, 1)}, "rescale"),
    "rescale alone": ({"rescale": ONE(6, 1)}, "oft_blocks factor is missing"),
    "magnitudes of an oft": ({"oft_blocks": ONE(3, 2, 2), "dora_scale": ONE(6, 1)}, "beside oft"),
    "an older form": ({"oft_diag": ONE(3, 2, 2)}, "oft_diag modules are not supported"),
    "PEFT's oft": ({"oft_R.weight": ONE(3, 1)}, "peft-oft modules are not supported"),
    "two kinds": (
        {
            "lora_down.weight": ONE(2, 4),
            "lora_up.weight": ONE(6, 2),
            "lokr_w1": ONE(2, 2),
            "lokr_w2": ONE(3, 2),
        },
        "two kinds in one module: lokr and lora",
    ),
    "integers": ({"oft_blocks": ONE(3, 2, 2, dtype=torch.int64)}, "holds torch.int64"),
}


@pytest.mark.parametrize(("tensors", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_tensors_that_do_not_fit_each_other_are_named(tensors, reason):
    named = {f"m.{suffix}": tensor for suffix, tensor in tensors.items()}
    (module,) = lora_from_tensors("x", named).modules.values()
    assert reason in module.problem
    with pytest.raises(LoraError, match=reason):
        merged(named, torch.ones(6, 4))


@every_form
def test_another_base_is_another_shape(build, options, generator):
    tensors = of_shape(build, options, KERNEL, generator)
    with pytest.raises(ShapeMismatchError):
        merged(tensors, torch.ones(30, 18, 3, 3))


# ----- stacks -----


def stack_of_all(generator, shape=(24, 18)):
    """One file of each kind for the one weight ``m``, and their tensors."""
    builds = (loha, lokr, oft, oft, lambda *args: boft(*args, size=6))
    files = [build("m", shape, generator) for build in builds]
    files.append(with_magnitudes(loha("m", shape, generator), "m", shape, generator, 1))
    return [lora_from_tensors(str(i), tensors) for i, tensors in enumerate(files)], files


def test_a_stack_is_the_sum_of_what_each_does_to_the_base(generator):
    loras, files = stack_of_all(generator)
    plain, diff = thin_tensors("m", (24, 18), 3, generator), normal((24, 18), generator, 0.1)
    loras += [lora_from_tensors("plain", plain), lora_from_tensors("diff", {"m.diff": diff})]
    base, strengths = normal((24, 18), generator, 0.5), [1.0, 0.7, -0.4, 0.5, 0.9, -0.6, 0.8, 0.3]
    exact = base.double() + 0.8 * product64(plain, "m", (24, 18)) + 0.3 * diff.double()
    for tensors, strength in zip(files, strengths, strict=False):
        exact += change64(tensors, "m", base, strength)
    items = [StackItem(lora, m) for lora, m in zip(loras, strengths, strict=True)]
    table, found = one_weight_table("m", (24, 18)), []
    for order in (items, items[::-1]):
        found.append(dict(patched_tensors(make_plan(order, table), {"m": base}))["m"])
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-5, atol=2e-6)
    assert torch.equal(bits(found[0]), bits(found[1]))


def test_no_delta_is_made_whole_but_of_a_turn(generator, monkeypatch):
    """LoHa and LoKr make the rows that are asked for; an OFT reads the base once."""
    loras, _ = stack_of_all(generator)
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 108)
    base, read, table = normal((24, 18), generator), [], one_weight_table("m", (24, 18))

    def rows(start, stop):
        read.append((start, stop))
        return base[start:stop]

    def update_of(*chosen):
        terms = make_plan([StackItem(lora) for lora in chosen], table).terms["m"]
        return fuse(terms, (24, 18), lambda t: t.lora.adapter(t.module, t.part))

    update = update_of(*loras[:2])
    assert not update.depends_on_base
    assert max(t.numel() for dense in update.views[0].dense for t in dense.tensors()) < 24 * 18 / 2
    assert update.measured(rows, (24, 18)).delta(0, 6, 18).shape == (6, 18)
    assert read == []
    update = update_of(*loras[2:5])
    assert update.depends_on_base
    ready = update.measured(rows, (24, 18))
    assert read == [(start, start + 6) for start in range(0, 24, 6)]
    assert not ready.depends_on_base
    assert ready.ranks() == ((0, 24, 0),)


# ----- merging and un-merging -----


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", CHUNK_ELEMENTS)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rung", ["full", "file", "residual", "auto"])
@pytest.mark.parametrize("dtype", MERGEABLE, ids=str)
def test_merge_change_add_remove_unmerge(rung, dtype, generator, tmp_path):
    loras = [toy_kinds("d", generator), toy_kinds("e", generator)]
    loras.append(toy_lora("a", {"linear": 2, "conv": 3, "k": 1, "projection": 2}, generator))
    assert_every_state_is_a_clean_merge(loras, rung, dtype, generator, tmp_path)


@pytest.mark.usefixtures("small_chunks")
def test_a_copy_is_kept_for_a_turn_alone(generator):
    """The deltas of LoHa and LoKr can be taken off again."""
    weights, _ = toy_weights(generator, torch.float16)
    base = all_bits(weights)
    ledger = MergeLedger(weights, "residual")
    ledger.apply(toy_plan((toy_kinds("d", generator), 1.0)))
    assert ledger.rungs() == {"residual": 2, "full": 2}  # linear and conv; qkv and projection
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", MERGEABLE, ids=str)
def test_copies_and_files_have_the_bits_of_the_ledger(dtype, generator, tmp_path):
    weights, _ = toy_weights(generator, dtype)
    write_safetensors(tmp_path / "base.safetensors", weights)
    plan = toy_plan((toy_kinds("d", generator), 0.6), (toy_kinds("e", generator), 0.3))
    copies = all_bits(dict(patched_tensors(plan, weights)))
    source = open_safetensors(tmp_path / "base.safetensors")
    changed = merge_checkpoint(source, plan, tmp_path / "merged.safetensors")
    merged_file = open_safetensors(tmp_path / "merged.safetensors").read_many(changed)
    MergeLedger(weights, "full").apply(plan)
    expected = {key: bits(weights[key]) for key in plan.terms}
    assert same_bits(copies, expected)
    assert same_bits(all_bits(merged_file), expected)


# ----- reports -----

TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TOLD = {
    "loha": (loha, {}, "scale * (w1_a @ w1_b) * (w2_a @ w2_b)", 3, 0.6),
    "lokr": (lokr, {}, "scale * kron(w1, w2)", None, 1.0),
    "oft": (oft, {}, "blocks of outputs, each turned", None, None),
    "boft": (
        boft,
        {"size": 10, "rescale": True},
        "blocks of outputs, turned in stages, times rescale",
        None,
        None,
    ),
}


@pytest.mark.parametrize("kind", TOLD)
def test_a_report_tells_kind_rule_rank_and_scale(kind, generator):
    build, options, rule, rank, scale = TOLD[kind]
    tensors = build(TO_K, (320, 768), generator, **options)
    report = explain(lora_from_tensors("x", tensors))
    assert (report.family, report.verdict) == ("sd15", FITS)
    (module,) = report.to_json()["modules"]
    assert (module["kind"], module["rank"]) == (kind, rank)
    assert {row.rule for row in report.rows} == {rule}
    assert [row.scale for row in report.rows] == [pytest.approx(scale) if scale else None] * len(
        tensors
    )
    assert any("strength of it twice" in note for note in report.notes()) == ("oft" in kind)
    assert kind in report.to_text()


def test_magnitudes_are_told_in_rule_and_note(generator):
    tensors = with_magnitudes(loha(TO_K, (320, 768), generator), TO_K, (320, 768), generator)
    report = explain(lora_from_tensors("x", tensors))
    assert report.verdict == FITS
    (rule,) = {row.rule for row in report.rows}
    assert rule == "magnitude * (W0 + scale * (w1_a @ w1_b) * (w2_a @ w2_b)) / its norm"
    assert "another norm" in " ".join(report.notes())


def test_notes_say_what_comfyuis_loader_makes_of_an_oft(generator):
    tensors = oft(TO_K, (320, 768), generator, alpha=0.1, rescale=True)
    notes = " ".join(explain(lora_from_tensors("x", tensors)).notes())
    assert "takes another than LyCORIS" in notes
    assert "leaves the rescale out" in notes


@pytest.mark.parametrize("module", ["linear", "conv", "projection"])
@pytest.mark.parametrize("build", [loha, lokr], ids=["loha", "lokr"])
def test_the_norm_by_block_is_that_of_the_delta(build, module, generator):
    target = TARGETS[module]
    tensors = build(module, target.weight.shape, generator)
    lora = lora_from_tensors("x", tensors)
    binding = bind(lora, one_table(module))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CHUNK_ELEMENTS", CHUNK_ELEMENTS)
        (norm,) = block_norms(StackItem(lora, 0.5), binding).values()
    exact = change64(tensors, module, torch.zeros(target.weight.shape), 0.5).norm()
    assert norm == pytest.approx(float(exact), rel=1e-5)


def test_the_norm_of_a_transposed_weight_counts_all_of_it(generator):
    """Stored with more rows than it has outputs."""
    tensors = loha("m", (3, 40), generator)
    lora = lora_from_tensors("x", tensors)
    binding = bind(lora, one_weight_table("m", (3, 40), transposed=True))
    (norm,) = block_norms(StackItem(lora), binding).values()
    assert norm == pytest.approx(float(change64(tensors, "m", torch.zeros(3, 40)).norm()), rel=1e-5)


def test_the_norm_by_block_leaves_turns_out(generator):
    lora = lora_from_tensors("x", oft("linear", (7, 5), generator))
    assert block_norms(StackItem(lora), bind(lora, one_table("linear"))) == {}


def one_table(module):
    from .toy_model import Table

    return Table({module: TARGETS[module]})
