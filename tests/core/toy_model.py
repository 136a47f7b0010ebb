"""A model of a few small storages of every sort, LoRAs for it, and float64 arithmetic beside it."""

import random
from dataclasses import dataclass

import torch

from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.models.target import ModuleTargets, Target
from lora_workbench.lora_core.patching.base_file import base_files
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.stack import StackItem, make_plan

MERGEABLE = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
SHAPES = {
    "linear.weight": (7, 5),
    "linear.bias": (7,),
    "conv.weight": (6, 4, 3, 3),
    "qkv.weight": (9, 4),
    "projection": (5, 6),
    "norm.weight": (5,),
}
CHUNK_ELEMENTS = 20  # linear in 2 chunks, conv in 6, qkv in 2 that cut its views, projection in 2


def _target(key, shape, rows=None, transposed=False):
    return Target(key, shape, "unet", key, rows, transposed)


TARGETS = {
    "linear": ModuleTargets(_target("linear.weight", (7, 5)), _target("linear.bias", (7,))),
    "conv": ModuleTargets(_target("conv.weight", (6, 4, 3, 3)), None),
    "q": ModuleTargets(_target("qkv.weight", (3, 4), rows=(0, 3)), None),
    "k": ModuleTargets(_target("qkv.weight", (3, 4), rows=(3, 6)), None),
    "v": ModuleTargets(_target("qkv.weight", (3, 4), rows=(6, 9)), None),
    "projection": ModuleTargets(_target("projection", (6, 5), transposed=True), None),
    "norm": ModuleTargets(_target("norm.weight", (5,)), None),
}


@dataclass
class Table:
    """A name table by hand."""

    targets: dict
    components: frozenset = frozenset({"unet"})

    def find(self, lora_key):
        return (self.targets[lora_key],) if lora_key in self.targets else ()


TOY_TABLE = Table(TARGETS)


def one_weight_table(name, shape, **view):
    """A model of the weight ``name``, which LoRAs address as ``name`` too."""
    return Table({name: ModuleTargets(_target(name, shape, **view), None)})


def normal(shape, generator, std=1.0, dtype=torch.float32):
    return (torch.randn(shape, generator=generator) * std).to(dtype)


def toy_weights(generator, dtype=torch.float32, std=0.5):
    """All storages in one buffer, so that one comparison sees every bit. Returns both."""
    size = torch.empty((), dtype=dtype).element_size()
    counts = {key: torch.Size(shape).numel() for key, shape in SHAPES.items()}
    room = {key: -(-count * size // 16) * 16 // size for key, count in counts.items()}
    flat = torch.zeros(sum(room.values()), dtype=dtype)
    weights, start = {}, 0
    for key, shape in SHAPES.items():
        weights[key] = flat[start : start + counts[key]].view(shape)
        weights[key].copy_(normal(shape, generator, std))
        start += room[key]
    weights["linear.weight"][0, :2] = torch.tensor([0.0, -0.0]).to(dtype)
    return weights, flat


def thin_tensors(name, shape, rank, generator, std=0.2, dtype=torch.float16, tucker=False):
    """Factors of a weight of ``shape`` under kohya names, alpha stored."""
    out, inside, *kernel = shape
    down = (rank, inside, *([1] * len(kernel) if tucker else kernel))
    tensors = {
        f"{name}.lora_down.weight": normal(down, generator, std, dtype),
        f"{name}.lora_up.weight": normal((out, rank, *[1] * len(kernel)), generator, std, dtype),
        f"{name}.alpha": torch.tensor(rank / 2 + 0.3),
    }
    if tucker:
        tensors[f"{name}.lora_mid.weight"] = normal((rank, rank, *kernel), generator, std, dtype)
    return tensors


def toy_lora(name, ranks, generator, tucker=False, extras=True):
    """A LoRA for the modules in ``ranks``, with a bias and a norm difference when ``extras``."""
    tensors = {}
    for module, rank in ranks.items():
        shape = TARGETS[module].weight.shape
        is_tucker = tucker and len(shape) == 4
        tensors |= thin_tensors(module, shape, rank, generator, tucker=is_tucker)
    if extras:
        tensors["linear.diff_b"] = normal((7,), generator, 0.1, torch.float16)
        tensors["norm.w_norm"] = normal((5,), generator, 0.1, torch.float16)
    return lora_from_tensors(name, tensors)


def toy_loras(generator):
    """Four LoRAs of different ranks that overlap in some storages."""
    return (
        toy_lora("a", {"linear": 2, "conv": 3, "q": 1, "projection": 2}, generator),
        toy_lora("b", {"conv": 2, "k": 2, "v": 1}, generator, tucker=True, extras=False),
        toy_lora("c", {"linear": 4, "q": 2, "v": 3}, generator, extras=False),
        toy_lora("d", {"linear": 1, "projection": 3, "conv": 1}, generator),
    )


def with_magnitudes(tensors, name, shape, generator, axis=0):
    """``tensors`` and LyCORIS' magnitudes: norms a tenth off those of a random weight of 0.5."""
    count, others = shape[axis], torch.Size(shape).numel() // shape[axis]
    norms = 0.5 * others**0.5 * (1 + 0.1 * torch.randn(count, generator=generator))
    stored = [1] * len(shape)
    stored[axis] = count
    return tensors | {f"{name}.dora_scale": norms.reshape(stored)}


DORA_AXES = {"linear": 0, "conv": 1, "q": 1, "v": 0, "projection": 0}


def toy_dora(name, generator, modules=tuple(DORA_AXES)):
    """A LoRA of DoRA modules: both axes, a kernel, rows of a storage, and a transposed one."""
    tensors = {}
    for module in modules:
        axis = DORA_AXES[module]
        shape = TARGETS[module].weight.shape
        thin = thin_tensors(module, shape, 2, generator)
        tensors |= with_magnitudes(thin, module, shape, generator, axis)
    return lora_from_tensors(name, tensors)


def dora64(tensors, name, base):
    """``W - W0`` of a DoRA in float64, from the definition; ``base`` as LoRA files see it."""
    base, stored = base.double(), tensors[f"{name}.dora_scale"].double()
    axis = 0 if stored.shape[0] == base.shape[0] else 1
    patched = base + product64(tensors, name, tuple(base.shape))
    others = [dim for dim in range(base.dim()) if dim != axis]
    norm = patched.square().sum(others, keepdim=True).sqrt()
    return patched * stored / norm - base


def toy_plan(*pairs):
    """The plan of (lora, strength) pairs on the toy model."""
    return make_plan([StackItem(lora, strength) for lora, strength in pairs], TOY_TABLE)


def bits(tensor):
    """The tensor's bits as integers, a copy."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def all_bits(weights):
    return {key: bits(weight) for key, weight in weights.items()}


def same_bits(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def product64(tensors, name, shape):
    """``alpha / rank * up @ down`` in float64, from the definition, shape of the weight."""
    wide = {key.removeprefix(f"{name}."): value.double() for key, value in tensors.items()}
    down, up = wide["lora_down.weight"], wide["lora_up.weight"]
    if "lora_mid.weight" in wide:
        down = torch.einsum("ab...,bc->ac...", wide["lora_mid.weight"], down.flatten(1))
    scale = wide["alpha"].item() / down.shape[0]
    return scale * torch.einsum("or,rc->oc", up.flatten(1), down.flatten(1)).reshape(shape)


def assert_every_state_is_a_clean_merge(loras, rung, dtype, generator, folder):
    """Each state has the bits of a merge into a clean base, and the end those of the base."""
    weights, _ = toy_weights(generator, dtype)
    base, clean = all_bits(weights), {key: weight.clone() for key, weight in weights.items()}
    write_safetensors(folder / "base.safetensors", weights)
    files = base_files(open_safetensors(folder / "base.safetensors"))
    ledger = MergeLedger(weights, rung, None if rung == "residual" else files)
    draw = random.Random(0)
    for _ in range(10):
        chosen = draw.sample(loras, draw.randint(0, 3))
        plan = toy_plan(*((lora, draw.choice([-1.0, 0.4, 1.1])) for lora in chosen))
        ledger.apply(plan)
        fresh = {key: weight.clone() for key, weight in clean.items()}
        MergeLedger(fresh, "full").apply(plan)
        assert same_bits(all_bits(weights), all_bits(fresh))
    ledger.unmerge()
    assert same_bits(all_bits(weights), base)
    assert (ledger.applied, ledger.rungs(), ledger.nbytes()) == ({}, {}, 0)
