"""LoHa, LoKr and OFT in ComfyUI 0.30: core's own adapters, our patches, and unmerged runs."""

import importlib
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from .checkpoints import SLIM, kohya_name, lora_targets
from .quantised_model import effect_error, mxfp8_model
from .test_runtime import (
    apply,
    flux,  # noqa: F401  a fixture
    flux_output,
    forwards,
    inference_mode,  # noqa: F401  a fixture
    latents,
    one_row,
    relative_error,
    slim,  # noqa: F401  a fixture
)

KINDS = ("loha", "lokr", "oft", "boft")


def loha(name, shape, generator, tucker=False):
    out, inside, *kernel = shape
    sizes = ((out, 3), (3, inside * math.prod(kernel)))
    if tucker:
        sizes = ((3, out), (3, inside))
    tensors = {
        f"{name}.hada_w{n}_{side}": torch.randn(size, generator=generator) * 0.3
        for n in "12"
        for side, size in zip("ab", sizes, strict=True)
    }
    if tucker:
        for n in "12":
            tensors[f"{name}.hada_t{n}"] = torch.randn(3, 3, *kernel, generator=generator) * 0.5
    return tensors | {f"{name}.alpha": torch.tensor(1.5)}


def lokr(name, shape, generator, first="full", second="factors"):
    out, inside, *kernel = shape
    outer = [next(n for n in (4, 3, 2, 1) if size % n == 0) for size in (out, inside)]
    inner = (out // outer[0], inside // outer[1])
    sizes = {"lokr_w1": outer}
    if first == "factors":
        sizes = {"lokr_w1_a": (outer[0], 2), "lokr_w1_b": (2, outer[1])}
    sizes |= {
        "full": {"lokr_w2": (*inner, *kernel)},
        "factors": {
            "lokr_w2_a": (inner[0], 2),
            "lokr_w2_b": (2, inner[1] * math.prod(kernel)),
        },
    }[second]
    tensors = {
        f"{name}.{role}": torch.randn(tuple(size), generator=generator) * 0.3
        for role, size in sizes.items()
    }
    return tensors | {f"{name}.alpha": torch.tensor(1.5)}


def oft(name, shape, generator, stages=None, alpha=0.0, rescale=False):
    size = 16 if shape[0] % 64 == 0 else next(n for n in (4, 2) if shape[0] % n == 0)
    count = shape[0] // size
    blocks = (count, size, size)
    if stages:
        blocks = (3 if count % 4 == 0 else 1, *blocks)
    tensors = {
        f"{name}.oft_blocks": torch.randn(blocks, generator=generator) * 0.5 / blocks[-1] ** 0.5,
        f"{name}.alpha": torch.tensor(alpha),
    }
    if rescale:
        numbers = 1 + 0.1 * torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
        tensors[f"{name}.rescale"] = numbers
    return tensors


def boft(name, shape, generator, **options):
    return oft(name, shape, generator, stages=True, **options)


SIZES = {"loha": 8, "lokr": 3}
BUILDS = {"loha": loha, "lokr": lokr, "oft": oft, "boft": boft}


def targets():
    """Every matrix and kernel of the slim model, of its text encoder those of one layer."""
    return [
        target
        for target in lora_targets(SLIM)
        if ".layers." not in target.target_key or ".layers.3." in target.target_key
    ]


@pytest.fixture(scope="module")
def files(comfy):
    """A file of each kind that changes all ``targets``."""
    names = {}
    for number, kind in enumerate(KINDS):
        generator, tensors = torch.Generator().manual_seed(number), {}
        for target in targets():
            own = BUILDS[kind](kohya_name(target), target.shape, generator)
            if kind in ("loha", "lokr"):  # a small part of the weight, as a trained one is
                first = next(key for key in own if "w1" in key)
                own[first] *= SIZES[kind] / math.prod(target.shape[1:]) ** 0.5
            tensors |= own
        names[kind] = f"kind_{kind}.safetensors"
        save_file(tensors, comfy.loras_dir / names[kind])
    return names


def weights_of(patcher):
    from comfy import model_management

    model_management.load_models_gpu([patcher])
    state = patcher.model.state_dict()
    return {t.target_key: state[t.target_key].clone() for t in targets() if t.target_key in state}


# ----- core's adapters -----

FORMS = {
    "loha": (loha, {}),
    "loha tucker": (loha, {"tucker": True}),
    "lokr": (lokr, {}),
    "lokr full": (lokr, {"second": "full"}),
    "lokr both of factors": (lokr, {"first": "factors"}),
    "oft": (oft, {}),
    "boft": (boft, {}),
}
CASES = [
    (form, shape)
    for form in FORMS
    for shape in ((16, 12), (16, 12, 3, 3))
    if len(shape) > 2 or "tucker" not in form
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("form", "shape"), CASES)
def test_ours_is_cores_adapter_but_for_the_strength_of_a_turn(comfy, form, shape, strength, dtype):
    """Core multiplies what an OFT adds at a strength by the strength once more."""
    from comfy import lora

    build, options = FORMS[form]
    tensors = build("m", shape, torch.Generator().manual_seed(0), **options)
    base = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (core,) = lora.load_lora(tensors, {"m": "key"}).values()
    ours = ours_of(comfy, tensors)
    values = {
        name: lora.calculate_weight(
            [(strength, adapter, 1.0, None, None)], base.float().clone(), "key"
        )
        for name, adapter in (("core", core), ("ours", ours))
    }
    deltas = {name: value.double() - base.double() for name, value in values.items()}
    expected = deltas["core"] / (strength if "oft" in form else 1)
    assert deltas["ours"].norm() > 1e-3 * base.double().norm()
    assert (deltas["ours"] - expected).norm() <= 2e-6 * base.double().norm()
    merged = ours.merged(base).double()
    exact = base.double() + deltas["ours"]
    if strength == 1:
        assert (merged - exact).norm() <= torch.finfo(dtype).eps * exact.norm()


def ours_of(comfy, tensors, rebuild=True):
    """Our adapter of a module ``m``, rebuilt as dynamic patchers do."""
    pack = comfy.pack.__name__
    read = importlib.import_module(f"{pack}.lora_core.lora")
    state = importlib.import_module(f"{pack}.hosts.comfy.adapter_state")
    fused = importlib.import_module(f"{pack}.hosts.comfy.adapter")
    parsed = read.lora_from_tensors("x", tensors)
    (module,) = parsed.modules.values()
    assert module.problem is None
    adapter = parsed.adapter(module, module.parts[0])
    kind, number = state.kind_and_number(adapter)
    again = state.rebuilt(kind, adapter.tensors(), number)
    assert type(again) is type(adapter)
    assert state.kind_and_number(again) == (kind, number)
    return fused.FusedLoraAdapter(set(), (False, (kind, 1.0, number, False, adapter.tensors(), 0)))


def test_core_reads_constraint_and_rescale_of_an_oft_otherwise(comfy):
    """It bounds by alpha, not by alpha times outputs, and leaves the rescale out."""
    from comfy import lora

    generator, base = torch.Generator().manual_seed(0), torch.randn(16, 12)

    def core_and_ours(**options):
        tensors = oft("m", (16, 12), generator, **options)
        (core,) = lora.load_lora(tensors, {"m": "key"}).values()
        return [
            lora.calculate_weight([(1.0, adapter, 1.0, None, None)], base.clone(), "key")
            for adapter in (core, ours_of(comfy, tensors))
        ]

    for options in ({"alpha": 0.05}, {"rescale": True}):
        core, ours = core_and_ours(**options)
        assert (core - ours).norm() > 1e-2 * base.norm()
    core, ours = core_and_ours()
    torch.testing.assert_close(core, ours, rtol=1e-5, atol=1e-5)


def test_magnitudes_over_loha_and_lokr_are_cores_by_inputs(comfy):
    from comfy import lora

    generator = torch.Generator().manual_seed(0)
    base = torch.randn(16, 12, generator=generator)
    for build in (loha, lokr):
        tensors = build("m", (16, 12), generator)
        tensors["m.dora_scale"] = base.norm(dim=0, keepdim=True) * 1.1
        (core,) = lora.load_lora(tensors, {"m": "key"}).values()
        got = [
            lora.calculate_weight([(0.6, adapter, 1.0, None, None)], base.clone(), "key")
            for adapter in (core, ours_of(comfy, tensors))
        ]
        torch.testing.assert_close(got[0], got[1], rtol=1e-5, atol=1e-5)


# ----- a model -----


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_apply_gives_the_weights_of_cores_loader(slim, files, kind, strength):  # noqa: F811
    import nodes

    ours = apply(*slim, f"<lora:{files[kind]}:{strength}:{strength}>", "merge")
    core = nodes.LoraLoader().load_lora(*slim, files[kind], strength, strength)
    base = weights_of(slim[0]) | weights_of(slim[1].patcher)
    compared = 0
    for mine, theirs in ((ours[0], core[0]), (ours[1].patcher, core[1].patcher)):
        expected = weights_of(theirs)
        for key, got in weights_of(mine).items():
            delta = expected[key].float() - base[key].float()
            rounding = torch.finfo(got.dtype).eps * expected[key].float().norm()
            error = (got.float() - expected[key].float()).norm()
            assert error <= 1e-5 * delta.norm() + rounding, key
            assert delta.norm() > 0
            compared += 1
    assert compared == len(targets())


def test_a_merge_on_the_device_comes_off_to_the_bit(slim, files):  # noqa: F811
    import nodes

    stack = [(name, 0.7, 0.7) for name in files.values()]
    base = weights_of(slim[0])
    rows = "\n".join(f"<lora:{name}:{strength}>" for name, strength, _ in stack)
    expected = weights_of(apply(slim[0], None, rows, "merge")[0])
    for undo in ("residual", "full"):
        node = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchMerge"]()
        model = node.execute(slim[0], stack, undo=undo)["result"][0]
        got = weights_of(model)
        assert all(torch.equal(got[key], expected[key]) for key in expected)
        again = weights_of(slim[0])
        assert all(torch.equal(again[key], base[key]) for key in base)


def test_a_residual_is_enough_for_loha_and_lokr(slim, files):  # noqa: F811
    import nodes

    base = weights_of(slim[0])
    stack = [(files[kind], 0.7, 0.7) for kind in ("loha", "lokr")]
    node = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchMerge"]()
    model = node.execute(slim[0], stack, undo="residual")["result"][0]
    merged = weights_of(model)
    assert {entry.rung for entry in model.backup.values()} == {"residual"}
    assert any(not torch.equal(merged[key], base[key]) for key in base)
    again = weights_of(slim[0])
    assert all(torch.equal(again[key], base[key]) for key in base)


@pytest.mark.parametrize("kind", KINDS)
def test_runtime_gives_the_latents_of_merge(slim, files, kind):  # noqa: F811
    row = f"<lora:{files[kind]}:0.8:0.6>"
    base = latents(*slim)
    model, clip, report = apply(*slim, row, "runtime")
    got = latents(model, clip)
    assert len(forwards(slim[0], slim[1].patcher)) == len(targets())
    assert (model.patches, clip.patcher.patches) == ({}, {})
    expected = latents(*apply(*slim, row, "merge")[:2])
    assert relative_error(expected, base) > 1e-2
    assert relative_error(got, expected) < 2e-5
    assert "runtime, LoRAs added in each forward pass" in report
    assert torch.equal(latents(*slim), base)


def test_what_runs_unmerged_is_kept_as_factors(slim, files):  # noqa: F811
    """Of LoHa and LoKr no delta is kept: it would be as large as the model."""
    size = sum(math.prod(target.shape) for target in targets())
    for kind in ("loha", "lokr"):
        model = apply(slim[0], None, one_row(files[kind]), "runtime")[0]
        (injection,) = model.get_injections("lora_workbench_runtime")
        additions = [a for more in injection.additions.values() for a in more]
        kept = sum(tensor.numel() for a in additions for tensor in a.tensors())
        assert 0 < kept < 0.1 * size


FLUX_MODULES = {
    "transformer_blocks.0.attn.to_q": ("double_blocks.0.img_attn.qkv", 0, 64),
    "transformer_blocks.0.attn.to_v": ("double_blocks.0.img_attn.qkv", 128, 64),
    "single_transformer_blocks.0.attn.to_k": ("single_blocks.0.linear1", 64, 64),
    "single_transformer_blocks.0.proj_mlp": ("single_blocks.0.linear1", 192, 256),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_changes_its_own_rows(comfy, flux, kind):  # noqa: F811
    """Merged and unmerged; diffusers' to_q, to_k are rows of fused layers."""
    from comfy import lora

    generator, tensors, expected = torch.Generator().manual_seed(0), {}, {}
    state = flux.model.state_dict()
    for name, (layer, start, length) in FLUX_MODULES.items():
        key = f"diffusion_model.{layer}.weight"
        whole = expected.setdefault(key, state[key].clone())
        own = f"lora_transformer_{name.replace('.', '_')}"
        part = BUILDS[kind](own, (length, whole.shape[1]), generator)
        (core,) = lora.load_lora(part, {own: "key"}).values()
        rows = whole[start : start + length]
        rows.copy_(lora.calculate_weight([(1.0, core, 1.0, None, None)], rows.clone(), "key"))
        tensors |= part
    name = f"kind_flux_{kind}.safetensors"
    save_file(tensors, comfy.loras_dir / name)
    first = flux_output(flux)
    merged = apply(flux, None, one_row(name), "merge")[0]
    output = flux_output(merged)
    for key, exact in expected.items():
        got = flux.model.state_dict()[key]
        assert (got - exact).norm() <= 2e-6 * exact.norm(), key
    runtime = apply(flux, None, one_row(name), "runtime")[0]
    got = flux_output(runtime)
    assert runtime.patches == {}
    assert relative_error(output, first) > 1e-3
    assert relative_error(got, output) < 1e-5
    assert torch.equal(flux_output(flux), first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_keeps_the_effect(comfy, slim_checkpoint, files, kind):
    """The layer's own weights, as they are stored, are the base."""
    from comfy import lora

    model, target, base = mxfp8_model(comfy, slim_checkpoint)
    own = kohya_name(target)
    file = load_file(comfy.loras_dir / files[kind])
    file = {key: value for key, value in file.items() if key.startswith(f"{own}.")}
    (core,) = lora.load_lora(file, {own: "key"}).values()
    delta = lora.calculate_weight([(1.0, core, 1.0, None, None)], base.clone(), "key") - base
    auto, _, report = apply(model, None, one_row(files[kind]), "auto")
    assert effect_error(model, auto, delta) < 1e-2
    assert "runtime, LoRAs added in each forward pass" in report
