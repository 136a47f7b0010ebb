"""After anything a session may do, the base is what it was right after loading, bit for bit."""

import gc
import importlib
import random
import sys
import uuid
import weakref
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

SEQUENCES = 200
STRENGTHS = [1.0, 0.5, -0.75, 2.0]


def pack_module(comfy, name):
    return importlib.import_module(f"{comfy.pack.__name__}.{name}")


def stock_patcher(model, seed):
    """ComfyUI's own patcher over a model, whose weights become random."""
    from comfy.model_patcher import ModelPatcher

    generator = torch.Generator().manual_seed(seed)
    for parameter in model.requires_grad_(False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    cpu = torch.device("cpu")
    return ModelPatcher(model, load_device=cpu, offload_device=cpu)


def tiny_model(dtype, seed, folder):
    """A MODEL of a few random layers, some of which ComfyUI can offload, loaded from a file."""
    from comfy.ops import disable_weight_init as ops

    layers = nn.ModuleDict(
        {
            "qkv": ops.Linear(12, 36, dtype=dtype),
            "out": ops.Linear(12, 12, bias=False, dtype=dtype),
            "conv": ops.Conv2d(4, 6, 3, dtype=dtype),
            "norm": ops.LayerNorm(12, dtype=dtype),
            "plain": nn.Linear(12, 20, dtype=dtype),
            "ff": nn.Sequential(ops.Linear(20, 30, dtype=dtype), ops.Linear(30, 20, dtype=dtype)),
        }
    )
    layers.register_buffer("steps", torch.arange(7.0))
    model = nn.Module()
    model.diffusion_model, model.model_config = layers, SimpleNamespace(unet_config={})
    patcher = stock_patcher(model, seed)
    path = folder / f"tiny_{seed}.safetensors"
    save_file({f"model.{key}": value for key, value in model.state_dict().items()}, path)
    # ComfyUI: what its loaders leave (0.30); only the path is read here.
    patcher.cached_patcher_init = (tiny_model, (str(path),))
    return patcher


def tiny_clip(dtype, seed):
    """A CLIP of two random layers."""
    from comfy.ops import disable_weight_init as ops
    from comfy.sd import CLIP

    encoder = nn.Module()
    encoder.encoder = nn.ModuleDict(
        {"fc": ops.Linear(10, 16, dtype=dtype), "plain": nn.Linear(16, 10, dtype=dtype)}
    )
    clip = CLIP(no_init=True)
    clip.cond_stage_model, clip.patcher = encoder, stock_patcher(encoder, seed)
    clip.patcher.is_clip = True
    clip.tokenizer = clip.layer_idx = clip.apply_hooks_to_conds = None
    clip.tokenizer_options, clip.use_clip_schedule = {}, False
    return clip


def random_lora(comfy, checkpoint, name, share, seed):
    """A LoRA for every ``share``-th matrix of a MODEL and CLIP, and for the bias beside it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    shapes = {}
    for patcher in checkpoint.patchers():
        shapes |= {key: tuple(value.shape) for key, value in patcher.model.state_dict().items()}
    matrices = [key for key in shapes if key.endswith(".weight") and len(shapes[key]) >= 2]
    for key in matrices[::share]:
        out, *rest = shapes[key]
        module = lora_name(key.removesuffix(".weight"))
        tensors[f"{module}.lora_down.weight"] = torch.randn(2, *rest, generator=generator)
        tensors[f"{module}.lora_up.weight"] = torch.randn(out, 2, generator=generator)
        if key.removesuffix(".weight") + ".bias" in shapes:
            tensors[f"{module}.diff_b"] = torch.randn(out, generator=generator)
    return pack_module(comfy, "lora_core.lora").lora_from_tensors(name, tensors)


def lora_name(module):
    """What files call a module of the MODEL, or of the CLIP."""
    path = module.removeprefix("diffusion_model.")
    return f"text_encoders.{path}" if path == module else f"lora_unet_{path.replace('.', '_')}"


class Checkpoint:
    """A MODEL and CLIP; either may be a clone."""

    def __init__(self, model, clip):
        self.model, self.clip = model, clip

    def patchers(self):
        return [self.model, self.clip.patcher]


def assert_same_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for key, was in wanted.items():
        assert (found[key].dtype, found[key].device) == (was.dtype, was.device), key
        assert torch.equal(found[key].view(torch.uint8), was.view(torch.uint8)), key


class State:
    """A patcher's inner model right after loading."""

    def __init__(self, patcher):
        self.patcher = patcher
        self.tensors = {key: value.clone() for key, value in self.all_tensors().items()}
        self.modules = list(patcher.model.named_modules())
        self.functions = self.module_functions()

    def all_tensors(self):
        model = self.patcher.model
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def module_functions(self):
        return {
            name: (
                module.__dict__.get("forward"),
                list(getattr(module, "weight_function", ())),
                list(getattr(module, "bias_function", ())),
                getattr(module, "comfy_cast_weights", None),
                hasattr(module, "comfy_patched_weights"),
                hasattr(module, "prev_comfy_cast_weights"),
            )
            for name, module in self.modules
        }

    def left_behind(self):
        """What we put beside the weights and did not take away."""
        ours = {k: v for k, v in vars(self.patcher.model).items() if "lora_workbench" in k}
        is_dead = {k: isinstance(v, weakref.ref) and v() is None for k, v in ours.items()}
        return [name for name, dead in is_dead.items() if not dead]

    def check_bits(self):
        assert_same_bits(self.all_tensors(), self.tensors)

    def check(self):
        self.check_bits()
        assert list(self.patcher.model.named_modules()) == self.modules
        assert self.module_functions() == self.functions
        assert self.patcher.backup == {}
        assert self.patcher.object_patches_backup == {}
        assert (self.patcher.injections, self.patcher.is_injected) == ({}, False)
        assert self.patcher.model.current_weight_patches_uuid is None
        assert self.left_behind() == []


@contextmanager
def interrupted(inside, outside, line_number):
    """Raise ComfyUI's interrupt at the n-th line that runs in one set of functions.

    Lines in functions called from there count too, but for those called from the second set.
    """
    from comfy.model_management import InterruptProcessingException

    depth, left = {True: 0, False: 0}, line_number

    def on_line(frame, event, arg):
        nonlocal left
        if event == "return" and frame.f_code in inside | outside:
            depth[frame.f_code in inside] -= 1
        if event == "line" and depth[True] and not depth[False]:
            left -= 1
            if left == 0:
                raise InterruptProcessingException
        return on_line

    def on_call(frame, event, arg):
        if frame.f_code in inside | outside:
            depth[frame.f_code in inside] += 1
        return on_line if depth[True] else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    except InterruptProcessingException:
        pass
    finally:
        sys.settrace(before)


class Session:
    """Two loaded checkpoints and the clones that a user's graphs hold."""

    def __init__(self, comfy, tiny, generator):
        self.comfy, self.random = comfy, generator
        self.checkpoints, self.states, self.loras = tiny
        self.host = pack_module(comfy, "hosts.comfy").ComfyHost()
        self.item = pack_module(comfy, "lora_core.stack").StackItem
        from comfy.model_patcher import ModelPatcher

        ours = pack_module(comfy, "hosts.comfy.repatch").DifferentialRepatch
        bake = pack_module(comfy, "hosts.comfy.bake")
        self.inside = {ours.partially_load.__code__, ours.partially_unload.__code__}
        self.inside |= {bake._bake_key.__code__}
        # Injections are of those who make them; ComfyUI looks for interrupts in no such place.
        self.outside = {ModelPatcher.inject_model.__code__, ModelPatcher.eject_model.__code__}
        self.base = self.checkpoints[0]
        self.patched = None
        self.clones = []
        self.rungs = set()

    def run(self, operation):
        getattr(self, operation)()

    def live_clones(self):
        if any(clone() is not None for clone in self.clones):
            gc.collect()  # the frames of an interrupt may refer to one another
        return [clone() for clone in self.clones if clone() is not None]

    def stack(self):
        chosen = self.random.sample(self.loras, self.random.randint(1, len(self.loras)))
        return [self.item(lora, self.random.choice(STRENGTHS)) for lora in chosen]

    def hold(self, result):
        """Keep what a node returned, and load it as a sampler does."""
        self.patched = Checkpoint(result.model, result.clip)
        known = self.base.patchers()
        self.clones += [weakref.ref(p) for p in self.patched.patchers() if p not in known]
        load(self.patched)
        for patcher in self.patched.patchers():
            self.rungs |= {getattr(backup, "rung", "") for backup in patcher.backup.values()}

    def apply_onto(self, checkpoint, mode):
        stack = self.stack()
        self.hold(self.host.apply(checkpoint.model, checkpoint.clip, stack, "report", mode))

    def apply(self):
        self.apply_onto(self.base, "merge")

    def apply_to_patched(self):
        self.apply_onto(self.patched or self.base, "merge")

    def run_unmerged(self):
        self.apply_onto(self.base, "runtime")

    def merge(self):
        undo = self.random.choice(["auto", "full", "residual", "file"])
        model, clip = self.base.model, self.base.clip
        if undo == "file":  # no file is known of the text encoder
            merged = self.host.merge(model, None, self.stack(), "on_device", undo)
            merged = replace(merged, clip=clip)
        else:
            merged = self.host.merge(model, clip, self.stack(), "on_device", undo)
        self.hold(merged)

    def bake(self):
        checkpoint = self.patched or self.base
        self.hold(self.host.merge(checkpoint.model, checkpoint.clip, self.stack(), "bake", "auto"))

    def unmerge(self):
        error = pack_module(self.comfy, "lora_core.errors").LoraError
        checkpoint = self.patched or self.base
        try:
            self.hold(self.host.unmerge(checkpoint.model, checkpoint.clip))
        except error as raised:
            assert "Nothing is merged" in str(raised) or "baked into" in str(raised)

    def load_clean(self):
        load(self.base)
        for state in self.states:
            if state.patcher in self.base.patchers():
                state.check_bits()

    def load_again(self):
        load(self.patched or self.base)

    def switch_checkpoint(self):
        self.base = self.random.choice(self.checkpoints)
        self.patched = None
        load(self.base)

    def check_a_stack(self):
        """Whatever came before, a stack has the bits that ComfyUI's own class gives it."""
        stack = [self.item(lora, 0.5) for lora in self.loras]
        self.hold(self.host.apply(self.base.model, self.base.clip, stack, "report", "merge"))
        ours = self.patched.patchers()
        found = [{k: v.clone() for k, v in p.model.state_dict().items()} for p in ours]
        self.unload_all()
        for base, patched, state in zip(self.base.patchers(), ours, found, strict=True):
            stock = base.clone()
            stock.patches = {key: list(patches) for key, patches in patched.patches.items()}
            stock.patches_uuid = uuid.uuid4()
            load_patchers([stock])
            assert_same_bits(stock.model.state_dict(), state)

    def check_held(self):
        """A clone that is still held, as by a cached node, runs nothing in an unloaded model."""
        if self.patched is not None:
            assert [p.is_injected for p in self.patched.patchers()] == [False, False]

    def drop_clone(self):
        self.patched = None

    def unload_all(self):
        from comfy import model_management

        model_management.unload_all_models()

    def free_memory(self):
        from comfy import model_management

        model_management.free_memory(1e30, self.base.model.load_device)

    def partial_unload(self):
        from comfy import model_management

        for loaded in model_management.current_loaded_models:
            loaded.model.partially_unload(loaded.model.offload_device, self.memory())

    def partial_load(self):
        from comfy import model_management

        for loaded in model_management.current_loaded_models:
            loaded.model_use_more_vram(self.memory())

    def memory(self):
        """Bytes: up to the whole model."""
        return self.random.randint(1, self.base.model.model_size())

    def interrupt(self):
        operation = self.random.choice(INTERRUPTED)
        with interrupted(self.inside, self.outside, int(10 ** self.random.uniform(0, 4))):
            self.run(operation)


INTERRUPTED = [
    *("apply", "apply_to_patched", "merge", "unmerge", "run_unmerged", "bake"),
    "partial_unload",
]
OPERATIONS = [
    *("apply", "apply_to_patched", "merge", "merge", "unmerge", "run_unmerged", "bake"),
    *("interrupt", "interrupt", "load_clean", "load_again", "switch_checkpoint", "drop_clone"),
    *("unload_all", "free_memory", "partial_unload", "partial_load"),
]


def load(checkpoint):
    load_patchers(checkpoint.patchers())


def load_patchers(patchers):
    from comfy import model_management

    with torch.inference_mode():
        model_management.load_models_gpu(patchers)


@pytest.fixture(scope="module", params=[torch.float32, torch.float16], ids=["fp32", "fp16"])
def tiny(comfy, request, tmp_path_factory):
    """Two tiny checkpoints, their states right after loading, and three LoRAs for both."""
    folder, dtype = tmp_path_factory.mktemp("tiny"), request.param
    checkpoints = [
        Checkpoint(tiny_model(dtype, seed, folder), tiny_clip(dtype, 10 + seed)) for seed in (1, 2)
    ]
    loras = [random_lora(comfy, checkpoints[0], f"share{n}", n, seed=n) for n in (1, 2, 3)]
    states = [State(patcher) for checkpoint in checkpoints for patcher in checkpoint.patchers()]
    return checkpoints, states, loras


def test_the_base_is_exact_after_any_sequence(comfy, tiny):
    rungs = set()
    for seed in range(SEQUENCES // 2):
        generator = random.Random(seed)
        session = Session(comfy, tiny, generator)
        operations = generator.choices(OPERATIONS, k=generator.randint(3, 9))
        try:
            for operation in operations:
                session.run(operation)
            if generator.random() < 0.5:
                session.load_clean()
                session.check_a_stack()
            session.unload_all()
            session.check_held()
            session.drop_clone()
            for state in session.states:
                state.check()
            assert session.live_clones() == []
        except BaseException as error:
            error.add_note(f"sequence {seed}: {', '.join(operations)}")
            raise
        rungs |= session.rungs
    assert {"file", "full", "residual"} <= rungs
