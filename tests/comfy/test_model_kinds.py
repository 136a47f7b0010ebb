"""Kinds of patchers: small stand-ins for those that other packs and GPUs bring."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from .test_runtime import flux, flux_loras, flux_output, one_row, relative_error  # noqa: F401

CPU = torch.device("cpu")


@pytest.fixture
def kinds(comfy):
    return importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.model_kinds")


@pytest.fixture
def modes(comfy):
    return importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.modes")


@pytest.fixture(autouse=True)
def inference_mode(comfy):
    """As in ComfyUI's executor."""
    with torch.inference_mode():
        yield


def patcher_of(module, cls=None):
    from comfy import model_patcher

    module.device = CPU
    return (cls or model_patcher.ModelPatcher)(module.requires_grad_(False), CPU, CPU)


def linear(dtype=torch.float32):
    return torch.nn.Sequential(torch.nn.Linear(32, 32).to(dtype))


def as_class(patcher, name):
    """The same patcher with a subclass of its class."""
    patcher.__class__ = type(name, (type(patcher),), {})
    return patcher


def test_a_plain_patcher_may_be_reclassed(kinds):
    kind = kinds.model_kind(patcher_of(linear()))
    assert kind == kinds.ModelKind("ModelPatcher", True, False, False, None)


def test_a_class_of_ours_counts_as_the_one_it_is_made_from(comfy, kinds):
    repatch = importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.repatch")
    patcher = repatch.differential(patcher_of(linear()))
    assert type(patcher).__name__ != "ModelPatcher"
    assert kinds.model_kind(patcher) == kinds.ModelKind("ModelPatcher", True, False, False, None)


@pytest.mark.parametrize("name", ["ModelPatcherDynamic", "SomebodysPatcher"])
def test_another_class_keeps_its_class_and_is_named(kinds, name):
    kind = kinds.model_kind(as_class(patcher_of(linear()), name))
    assert (kind.name, kind.may_reclass) == (name, False)
    assert f"{name}: plain ComfyUI patches" in kind.note


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_storage_is_quantised(kinds, dtype):
    assert kinds.model_kind(patcher_of(linear(dtype))).is_quantised
    assert not kinds.model_kind(patcher_of(linear(torch.bfloat16))).is_quantised


def test_auto_chooses_for_model_and_text_encoders_apart(modes):
    fp8, half = patcher_of(linear(torch.float8_e4m3fn)), patcher_of(linear(torch.float16))
    for model, encoders, expected in ((fp8, half, ("runtime", "merge")), (half, half, ("merge",))):
        ways = modes.choose_ways(model, SimpleNamespace(patcher=encoders), "auto")
        assert ways.modes[: len(expected)] == expected
    ways = modes.choose_ways(half, SimpleNamespace(patcher=fp8), "auto")
    assert ways.modes == ("merge", "runtime")
    assert "model: ComfyUI patches" in ways.path
    assert "text encoders: runtime" in ways.path


def nunchaku(name, module_name="Linear"):
    """A MODEL whose diffusion model, and a module in it, have these class names."""
    inner = type(module_name, (torch.nn.Linear,), {})(4, 4)
    diffusion_model = type(name, (torch.nn.Sequential,), {})(inner)
    return patcher_of(torch.nn.ModuleDict({"diffusion_model": diffusion_model}))


@pytest.mark.parametrize(
    ("name", "module_name", "fix"),
    [
        ("ComfyFluxWrapper", "Linear", "Nunchaku FLUX LoRA Loader"),
        ("NunchakuQwenImageTransformer2DModel", "Linear", "Nunchaku Qwen Image LoRA Loader"),
        ("NunchakuSDXLUNetModel", "Linear", "without Nunchaku"),
        ("NextDiT", "SVDQW4A4Linear", "without Nunchaku"),
    ],
)
def test_nunchaku_is_refused_with_what_to_use_instead(kinds, modes, name, module_name, fix):
    patcher = nunchaku(name, module_name)
    with pytest.raises(ValueError, match=name) as caught:
        kinds.refuse_unsupported(patcher)
    assert fix in str(caught.value)
    with pytest.raises(ValueError, match="Nunchaku"):
        modes.choose_ways(patcher, None, "merge")


def test_other_models_are_not_refused(kinds):
    kinds.refuse_unsupported(nunchaku("NextDiT"))
    kinds.refuse_unsupported(patcher_of(linear()))  # as a text encoder: no diffusion model


def apply(model, rows, mode="auto"):
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchApply"]()
    model, _, report, _ = node.execute(model, rows, mode=mode)["result"]
    return model, report


class PatchesAtUse:
    """As GGUF's patcher: weights stay packed, patches go onto the dequantised ones in forwards."""

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False, **_):
        from comfy import lora, utils

        if key not in self.patches:
            return
        module, _, parameter = key.rpartition(".")
        module = utils.get_attr(self.model, module)
        patches, forward = self.patches[key], type(module).forward

        def dequantised(x):
            weight = getattr(module, parameter)
            values = lora.calculate_weight(patches, weight.clone(), key)
            setattr(module, parameter, torch.nn.Parameter(values, requires_grad=False))
            output = forward(module, x)
            setattr(module, parameter, weight)
            return output

        module.forward = dequantised

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            for module in self.model.modules():
                module.__dict__.pop("forward", None)
        super().unpatch_model(device_to, unpatch_weights)


def test_gguf_like_patchers_work_and_equal_core(comfy, flux, flux_loras):  # noqa: F811
    import nodes

    flux.__class__ = type("GGUFModelPatcher", (PatchesAtUse, type(flux)), {})
    base = flux_output(flux)
    ours, report = apply(flux, one_row(flux_loras[0]))
    core, _ = nodes.LoraLoader().load_lora(flux, None, flux_loras[0], 1.0, 0.0)
    assert type(ours) is type(flux)
    got, expected = flux_output(ours), flux_output(core)
    assert relative_error(expected, base) > 1e-2
    assert relative_error(got, expected) < 1e-5
    assert "GGUFModelPatcher: patches are added to the dequantised weights" in report
    assert torch.equal(flux_output(flux), base)


@pytest.mark.parametrize(
    ("name", "is_dynamic", "is_equal"),
    [(None, False, True), ("Other", False, False), ("ModelPatcherDynamic", True, True)],
)
def test_equal_stacks_count_as_loaded_where_no_patch_can_get_lost(
    flux,  # noqa: F811
    flux_loras,  # noqa: F811
    name,
    is_dynamic,
    is_equal,
):
    """A parent that unloads in part for a dead clone drops patches; ours and dynamic ones cope."""
    if name is not None:
        flux = as_class(flux.clone(), name)
        type(flux).is_dynamic = lambda self: is_dynamic
    first, again = (apply(flux, one_row(flux_loras[0]))[0] for _ in range(2))
    assert (first.patches_uuid == again.patches_uuid) is is_equal


def test_a_dynamic_patcher_takes_the_plain_path(flux, flux_loras):  # noqa: F811
    expected = flux_output(apply(flux, one_row(flux_loras[0]))[0])
    model, report = apply(as_class(flux.clone(), "ModelPatcherDynamic"), one_row(flux_loras[0]))
    assert type(model).__name__ == "ModelPatcherDynamic"
    assert torch.equal(flux_output(model), expected)
    assert "(ModelPatcherDynamic)" in report


def compiled(patcher, backend):
    """As core's TorchCompileModel node, with another backend."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    patcher = patcher.clone()
    set_torch_compile_wrapper(patcher, backend=backend)
    return patcher


def wrapped_output(patcher):
    """The output of ``apply_model``, through the wrappers that a sampler installs."""
    from comfy import model_management, patcher_extension

    model_management.load_models_gpu([patcher])
    options = {"wrappers": patcher_extension.copy_nested_dicts(patcher.wrappers)}
    generator = torch.Generator().manual_seed(5)
    x, context = (torch.randn(s, generator=generator) for s in ((1, 4, 8, 8), (1, 6, 40)))
    return patcher.model.apply_model(
        x,
        torch.ones(1),
        c_crossattn=context,
        transformer_options=options,
        y=torch.ones(1, 24),
        guidance=torch.ones(1),
    )


@pytest.mark.comfyui("0.30", "the first merge compiles once more")
@pytest.mark.parametrize("mode", ["merge", "runtime"])
def test_a_strength_change_recompiles_nothing(flux, flux_loras, mode):  # noqa: F811
    """As the report says; the base, merged or not, is one graph, and runtime mode another."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    base = compiled(flux, counter)
    first = wrapped_output(base)
    counts = [counter.frame_count]
    for strength in (1.0, 0.5):
        model, report = apply(base, one_row(flux_loras[0], strength), mode)
        got = wrapped_output(model)
        counts.append(counter.frame_count)
    plain = wrapped_output(apply(flux, one_row(flux_loras[0], 0.5), mode)[0])
    torch.testing.assert_close(got, plain)
    assert torch.equal(wrapped_output(base), first)
    base_graphs, entered, changed = counts
    assert entered == changed == counter.frame_count
    assert (entered > base_graphs > 0) == (mode == "runtime")
    assert "torch.compile: a strength change recompiles nothing" in report
