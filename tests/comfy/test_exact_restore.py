"""After anything a session may do, the base is what it was right after loading, bit for bit."""

import gc
import importlib
import random
import sys
import uuid
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

SEQUENCES = 200
STRENGTHS = [1.0, 0.5, -0.75, 2.0]


def pack_module(comfy, name):
    return importlib.import_module(f"{comfy.pack.__name__}.{name}")


def tiny_model(dtype, seed):
    """A stock patcher over a few random layers, some of which ComfyUI can offload."""
    from comfy.model_patcher import ModelPatcher
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
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.requires_grad_(False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    cpu = torch.device("cpu")
    return ModelPatcher(model, load_device=cpu, offload_device=cpu)


def random_lora(comfy, model, name, share, seed):
    """A LoRA for every ``share``-th matrix of the UNet, and for the bias beside it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    shapes = {key: tuple(value.shape) for key, value in model.model.state_dict().items()}
    matrices = [key for key in shapes if key.endswith(".weight") and len(shapes[key]) >= 2]
    for key in matrices[::share]:
        out, *rest = shapes[key]
        module = key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
        tensors[f"lora_unet_{module}.lora_down.weight"] = torch.randn(2, *rest, generator=generator)
        tensors[f"lora_unet_{module}.lora_up.weight"] = torch.randn(out, 2, generator=generator)
        if key.removesuffix(".weight") + ".bias" in shapes:
            tensors[f"lora_unet_{module}.diff_b"] = torch.randn(out, generator=generator)
    return pack_module(comfy, "lora_core.lora").lora_from_tensors(name, tensors)


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

    def __init__(self, comfy, states, loras, generator):
        self.comfy, self.states, self.loras, self.random = comfy, states, loras, generator
        self.models = [state.patcher for state in states]
        self.host = pack_module(comfy, "hosts.comfy").ComfyHost()
        self.item = pack_module(comfy, "lora_core.stack").StackItem
        from comfy.model_patcher import ModelPatcher

        ours = pack_module(comfy, "hosts.comfy.repatch").DifferentialRepatch
        self.inside = {ours.partially_load.__code__, ours.partially_unload.__code__}
        # Injections are of those who make them; ComfyUI looks for interrupts in no such place.
        self.outside = {ModelPatcher.inject_model.__code__, ModelPatcher.eject_model.__code__}
        self.base = self.models[0]
        self.patched = None
        self.clones = []

    def run(self, operation):
        getattr(self, operation)()

    def live_clones(self):
        if any(clone() is not None for clone in self.clones):
            gc.collect()  # the frames of an interrupt may refer to one another
        return [clone() for clone in self.clones if clone() is not None]

    def stack(self):
        chosen = self.random.sample(self.loras, self.random.randint(1, len(self.loras)))
        return [self.item(lora, self.random.choice(STRENGTHS)) for lora in chosen]

    def hold(self, model):
        self.patched = model
        if model is not self.base:
            self.clones.append(weakref.ref(model))
        load(model)

    def apply(self):
        self.hold(self.host.apply(self.base, None, self.stack(), "report", "merge").model)

    def apply_to_patched(self):
        model = self.patched or self.base
        self.hold(self.host.apply(model, None, self.stack(), "report", "merge").model)

    def run_unmerged(self):
        self.hold(self.host.apply(self.base, None, self.stack(), "report", "runtime").model)

    def merge(self):
        undo = self.random.choice(["auto", "full", "residual"])
        self.hold(self.host.merge(self.base, None, self.stack(), "on_device", undo).model)

    def unmerge(self):
        error = pack_module(self.comfy, "lora_core.errors").LoraError
        try:
            self.hold(self.host.unmerge(self.patched or self.base, None).model)
        except error as raised:
            assert "Nothing is merged" in str(raised)

    def load_clean(self):
        load(self.base)
        self.states[self.models.index(self.base)].check_bits()

    def load_again(self):
        load(self.patched or self.base)

    def switch_checkpoint(self):
        self.base = self.random.choice(self.models)
        self.patched = None
        load(self.base)

    def check_a_stack(self):
        """Whatever came before, a stack has the bits that ComfyUI's own class gives it."""
        stack = [self.item(lora, 0.5) for lora in self.loras]
        self.hold(self.host.apply(self.base, None, stack, "report", "merge").model)
        found = {key: value.clone() for key, value in self.patched.model.state_dict().items()}
        self.unload_all()
        stock = self.base.clone()
        stock.patches = {key: list(patches) for key, patches in self.patched.patches.items()}
        stock.patches_uuid = uuid.uuid4()
        load(stock)
        assert_same_bits(stock.model.state_dict(), found)

    def drop_clone(self):
        self.patched = None

    def unload_all(self):
        from comfy import model_management

        model_management.unload_all_models()

    def free_memory(self):
        from comfy import model_management

        model_management.free_memory(1e30, self.base.load_device)

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
        return self.random.randint(1, self.base.model_size())

    def interrupt(self):
        operation = self.random.choice(INTERRUPTED)
        with interrupted(self.inside, self.outside, int(10 ** self.random.uniform(0, 4))):
            self.run(operation)


INTERRUPTED = ["apply", "apply_to_patched", "merge", "unmerge", "partial_unload", "run_unmerged"]
OPERATIONS = [
    *("apply", "apply_to_patched", "merge", "unmerge", "run_unmerged", "interrupt", "interrupt"),
    *("load_clean", "load_again", "switch_checkpoint", "drop_clone"),
    *("unload_all", "free_memory", "partial_unload", "partial_load"),
]


def load(patcher):
    from comfy import model_management

    with torch.inference_mode():
        model_management.load_models_gpu([patcher])


@pytest.fixture(scope="module", params=[torch.float32, torch.float16], ids=["fp32", "fp16"])
def tiny(comfy, request):
    """Two tiny checkpoints, their states right after loading, and three LoRAs for both."""
    models = [tiny_model(request.param, seed) for seed in (1, 2)]
    loras = [random_lora(comfy, models[0], f"share{n}", n, seed=n) for n in (1, 2, 3)]
    return [State(model) for model in models], loras


def test_the_base_is_exact_after_any_sequence(comfy, tiny):
    states, loras = tiny
    for seed in range(SEQUENCES // 2):
        generator = random.Random(seed)
        session = Session(comfy, states, loras, generator)
        operations = generator.choices(OPERATIONS, k=generator.randint(3, 9))
        try:
            for operation in operations:
                session.run(operation)
            if generator.random() < 0.5:
                session.load_clean()
                session.check_a_stack()
            session.drop_clone()
            session.unload_all()
            for state in states:
                state.check()
            assert session.live_clones() == []
        except BaseException as error:
            error.add_note(f"sequence {seed}: {', '.join(operations)}")
            raise
