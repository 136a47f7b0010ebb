"""A changed stack rewrites only the weights whose patches changed, with core's own bits."""

import importlib
import json
import uuid

import pytest
import torch

from .checkpoints import SLIM, lora_targets, write_lora
from .conftest import node, text_to_image


@pytest.fixture
def module_moves(comfy, monkeypatch) -> list[str]:
    """The class of each module that anything moves with ``to``."""
    moves, original = [], torch.nn.Module.to

    def counted(self, *args, **kwargs):
        moves.append(type(self).__name__)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", counted)
    return moves


@pytest.fixture(scope="module")
def wide(comfy, slim_checkpoint) -> str:
    """A LoRA for every target of UNet and text encoder."""
    path = comfy.loras_dir / "wide.safetensors"
    write_lora(path, lora_targets(SLIM), rank=4, seed=1)
    return path.name


@pytest.fixture(scope="module")
def narrow_targets(comfy) -> list[str]:
    """Keys of two weights of the UNet and two of the text encoder."""
    targets = lora_targets(SLIM)
    return [targets[0], targets[5], targets[-1], targets[-7]]


@pytest.fixture(scope="module")
def narrow(comfy, slim_checkpoint, narrow_targets) -> str:
    """A LoRA for ``narrow_targets`` alone."""
    path = comfy.loras_dir / "narrow.safetensors"
    write_lora(path, narrow_targets, rank=2, seed=2)
    return path.name


def keys(targets):
    return sorted(target.target_key for target in targets)


def graph(checkpoint, rows, **inputs):
    apply = node(
        "LoraWorkbenchApply",
        model=["checkpoint", 0],
        clip=["checkpoint", 1],
        rows=json.dumps(rows),
    )
    return text_to_image(
        checkpoint, model=("apply", 0), clip=("apply", 1), extra={"apply": apply}, **inputs
    )


def loaded_parameters():
    """Every parameter of the loaded UNet and text encoder, by name."""
    from comfy import model_management

    inner = [loaded.model.model for loaded in model_management.current_loaded_models]
    return {
        name: parameter
        for model in inner
        if hasattr(model, "current_weight_patches_uuid")
        for name, parameter in model.named_parameters()
        if not name.startswith("first_stage")
    }


def rewritten(before, after):
    """Names whose parameter object or memory is another one: restored, patched or moved."""
    assert before.keys() == after.keys()
    return sorted(
        name
        for name, parameter in after.items()
        if parameter is not before[name] or parameter.data_ptr() != before[name].data_ptr()
    )


def test_another_seed_touches_nothing(executor, slim_checkpoint, wide, adapter_calls):
    rows = [{"name": wide}]
    executor.run(graph(slim_checkpoint, rows))
    before = loaded_parameters()
    adapter_calls.clear()
    executor.run(graph(slim_checkpoint, rows, seed=8))
    assert adapter_calls == []
    assert rewritten(before, loaded_parameters()) == []


def test_an_equal_stack_after_its_node_left_the_cache_touches_nothing(
    executor, slim_checkpoint, wide, adapter_calls
):
    """A graph without the node drops its clones; the loaded model and its weights stay."""
    rows = [{"name": wide}]
    first = executor.run(graph(slim_checkpoint, rows))
    before = loaded_parameters()
    other = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=slim_checkpoint),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "decode": node("VAEDecode", samples=["latent", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="other"),
    }
    executor.run(other)
    adapter_calls.clear()
    again = executor.run(graph(slim_checkpoint, rows))
    assert "apply" in again.executed
    assert "checkpoint" not in again.executed
    assert adapter_calls == []
    assert rewritten(before, loaded_parameters()) == []
    assert again.pictures[0].read_bytes() == first.pictures[0].read_bytes()


def test_one_changed_strength_touches_only_the_weights_of_its_lora(
    comfy, executor, slim_checkpoint, wide, narrow, narrow_targets, adapter_calls, module_moves
):
    def rows(strength):
        return [{"name": wide}, {"name": narrow, "model": strength, "clip": strength}]

    executor.run(graph(slim_checkpoint, rows(1.0)))
    before = loaded_parameters()
    adapter_calls.clear()
    module_moves.clear()
    changed = executor.run(graph(slim_checkpoint, rows(-0.5)))
    assert sorted(adapter_calls) == keys(narrow_targets)
    assert rewritten(before, loaded_parameters()) == keys(narrow_targets)
    assert "SD1ClipModel" not in module_moves
    assert "BaseModel" not in module_moves
    from comfy import model_management

    model_management.unload_all_models()
    fresh = comfy.run(graph(slim_checkpoint, rows(-0.5)))
    assert changed.pictures[0].read_bytes() == fresh.pictures[0].read_bytes()


def test_two_branches_of_one_graph_alternate_by_their_difference(
    executor, slim_checkpoint, wide, narrow, narrow_targets, adapter_calls
):
    two = graph(slim_checkpoint, [{"name": wide}, {"name": narrow}])
    rows = json.dumps([{"name": wide}, {"name": narrow, "model": 0.25}])
    two["apply2"] = node("LoraWorkbenchApply", model=["checkpoint", 0], rows=rows)
    sampler = two["sampler"]["inputs"]
    two["sampler2"] = node(
        "KSampler", **(sampler | {"model": ["apply2", 0], "latent_image": ["sampler", 0]})
    )
    two["decode"]["inputs"]["samples"] = ["sampler2", 0]
    executor.run(two)
    adapter_calls.clear()
    sampler["seed"] = 8
    executor.run(two)
    unet = [t for t in narrow_targets if t.target_key.startswith("diffusion_model.")]
    assert sorted(adapter_calls) == sorted(keys(unet) * 2)


def pack_module(comfy, name):
    return importlib.import_module(f"{comfy.pack.__name__}.{name}")


@pytest.fixture(scope="module")
def base(comfy, slim_checkpoint):
    """The slim checkpoint's MODEL, a stock patcher."""
    import comfy.sd as sd

    path = comfy.checkpoints_dir / slim_checkpoint
    return sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]


@pytest.fixture
def apply(comfy, base):
    """Apply LoRAs to ``base``: names to strengths in, a patched clone out."""
    host = pack_module(comfy, "hosts.comfy").ComfyHost()
    choice = pack_module(comfy, "hosts.protocol").LoraChoice
    item = pack_module(comfy, "lora_core.stack").StackItem

    def applied(model=base, **strengths):
        stack = [
            item(host.load_lora(choice(f"{name}.safetensors")), strength)
            for name, strength in strengths.items()
        ]
        return host.apply(model, None, stack, "report", "merge").model

    return applied


def load(patcher):
    from comfy import model_management

    with torch.inference_mode():
        model_management.load_models_gpu([patcher])


def weights(patcher):
    return {key: value.clone() for key, value in patcher.model.state_dict().items()}


def stock_weights(base, patcher):
    """What ComfyUI's own class makes of the same patches, from the unpatched base."""
    from comfy import model_management

    model_management.unload_all_models()
    stock = base.clone()
    stock.patches = {key: list(patches) for key, patches in patcher.patches.items()}
    stock.patches_uuid = uuid.uuid4()
    load(stock)
    found = weights(stock)
    model_management.unload_all_models()
    return found


def assert_equal_bits(found, wanted):
    assert found.keys() == wanted.keys()
    differ = [key for key in found if not same_bits(found[key], wanted[key])]
    assert differ == []


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


STEPS = [
    {"wide": 1.0, "narrow": 1.0},
    {"wide": 1.0, "narrow": 0.5},
    {"wide": 1.0},
    {"narrow": -2.0},
    {"wide": -0.3, "narrow": 0.7},
    {},
    {"narrow": 1.0},
]


@pytest.mark.usefixtures("wide", "narrow")
def test_every_change_gives_the_bits_of_the_stock_path(base, apply):
    """Changed, removed, added and negative, one after the other on one loaded model."""
    wanted = [stock_weights(base, apply(**step)) for step in STEPS]
    for step, stock in zip(STEPS, wanted, strict=True):
        patcher = apply(**step)
        load(patcher)
        assert_equal_bits(weights(patcher), stock)


def touched(base, patcher):
    """Names of what a load rewrites."""
    before = dict(base.model.named_parameters())
    load(patcher)
    return rewritten(before, dict(base.model.named_parameters()))


@pytest.mark.usefixtures("wide", "narrow")
def test_a_removed_lora_puts_only_its_weights_back(base, apply, narrow_targets):
    load(apply(wide=1.0, narrow=1.0))
    patcher = apply(wide=1.0)
    unet = [t for t in narrow_targets if t.target_key.startswith("diffusion_model.")]
    assert touched(base, patcher) == keys(unet)
    assert base.backup.keys() == patcher.patches.keys()
    load(apply(narrow=1.0))
    assert sorted(base.backup) == keys(unet)


@pytest.mark.usefixtures("wide", "narrow")
def test_a_clone_of_our_clone_and_its_object_patch_keep_the_way(base, apply, narrow_targets):
    """As ModelSampling nodes after ours: their clone has another patch of the same name."""
    unet = [t for t in narrow_targets if t.target_key.startswith("diffusion_model.")]
    first, second = apply(wide=1.0, narrow=1.0).clone(), apply(wide=1.0, narrow=0.5).clone()
    samplings = [torch.nn.Identity(), torch.nn.Identity()]
    first.add_object_patch("model_sampling", samplings[0])
    second.add_object_patch("model_sampling", samplings[1])
    original = base.model.model_sampling
    load(first)
    assert touched(base, second) == keys(unet)
    assert base.model.model_sampling is samplings[1]
    second.detach()
    assert base.model.model_sampling is original


def force_partial_load(patcher):
    patcher.partially_unload(patcher.offload_device, 10_000_000)


def add_load_callback(patcher):
    from comfy.patcher_extension import CallbacksMP

    patcher.add_callback(CallbacksMP.ON_LOAD, lambda *args: None)


def add_wrapper(patcher):
    key = next(key for key in patcher.patches if key.endswith("weight"))
    patcher.weight_wrapper_patches[key] = [lambda weight: weight]


def add_foreign_object_patch(patcher):
    key = next(iter(patcher.patches)).rpartition(".")[0]
    patcher.add_object_patch(key, patcher.get_model_object(key))


def pin(patcher):
    patcher.pinned.update(patcher.patches)


DOUBTS = {
    "partly loaded": (force_partial_load, None),
    "callbacks at load": (None, add_load_callback),
    "wrappers": (None, add_wrapper),
    "object patch": (None, add_foreign_object_patch),
    "hooks": (None, lambda patcher: patcher.hook_patches.update({"ref": {}})),
    "pinned": (pin, None),
}


@pytest.mark.usefixtures("wide", "narrow")
@pytest.mark.parametrize(
    "doubt",
    [
        pytest.param(doubt, marks=pytest.mark.comfyui("0.8", "it pins nothing"))
        if doubt == "pinned"
        else doubt
        for doubt in DOUBTS
    ],
)
def test_a_doubtful_change_takes_the_stock_path(base, apply, doubt):
    before_change, on_new_clone = DOUBTS[doubt]
    first, second = apply(wide=1.0), apply(wide=0.5)
    wanted = stock_weights(base, second)
    load(first)
    if before_change:
        before_change(first)
    if on_new_clone:
        on_new_clone(second)
    assert doubt in second.why_stock(second.load_device)
    load(second)
    assert_equal_bits(weights(second), wanted)


@pytest.mark.usefixtures("wide")
def test_another_patcher_in_between_is_unpatched_by_the_stock_path(base, apply):
    load(apply(wide=1.0))
    stock = base.clone()
    stock.add_patches({})
    load(stock)
    patcher = apply(wide=0.5)
    assert "another patcher" in patcher.why_stock(patcher.load_device)


@pytest.mark.usefixtures("wide")
def test_patches_lost_by_a_partial_unload_of_the_parent_come_back(base, apply):
    """Our clone died, so that ComfyUI unloads through its parent, which knows no LoRA."""
    from comfy import model_management

    load(apply(wide=1.0))
    (loaded,) = model_management.current_loaded_models
    assert loaded.model is base
    base.partially_unload(base.offload_device, 10_000_000)
    patcher = apply(wide=1.0)
    assert patcher.patches_uuid == base.model.current_weight_patches_uuid
    patcher.partially_load(patcher.load_device, 1)  # byte of free memory
    assert sorted([*patcher.backup, *lowvram_patches(patcher)]) == sorted(patcher.patches)
    patcher.detach()


def lowvram_patches(patcher):
    return sorted(
        function.key
        for module in patcher.model.modules()
        for name in ("weight_function", "bias_function")
        for function in getattr(module, name, ())
    )


@pytest.mark.usefixtures("wide")
def test_the_report_names_the_way_and_a_missing_field(comfy, base, apply, monkeypatch):
    repatch = pack_module(comfy, "hosts.comfy.repatch")
    assert "only the weights it touches" in repatch.repatch_text(base, may_reclass=True)
    assert "ComfyUI's own path" in repatch.repatch_text(base, may_reclass=False)
    monkeypatch.delattr(base, "hook_backup")
    text = repatch.repatch_text(base, may_reclass=True)
    assert "ComfyUI's own path (this version has no hook_backup)" in text
    assert repatch.differential(base) is base
    assert type(base).__name__ == "ModelPatcher"
