"""LoHa, LoKr and OFT files of every form, and their definitions in float64."""

import math

import torch

from lora_workbench.lora_core.lora import lora_from_tensors

from .toy_model import TARGETS, normal


def loha(name, shape, generator, rank=3, std=0.4, tucker=False):
    out, inside, *kernel = shape
    if tucker:
        sizes = {"a": (rank, out), "b": (rank, inside)}
    else:
        sizes = {"a": (out, rank), "b": (rank, inside * math.prod(kernel))}
    tensors = {
        f"{name}.hada_w{n}_{side}": normal(sizes[side], generator, std, torch.float16)
        for n in (1, 2)
        for side in "ab"
    }
    if tucker:
        for n in (1, 2):
            core = normal((rank, rank, *kernel), generator, std, torch.float16)
            tensors[f"{name}.hada_t{n}"] = core
    return tensors | {f"{name}.alpha": torch.tensor(rank / 2 + 0.3)}


def lokr(name, shape, generator, first="full", second="full", rank=2, std=0.4, sizes=None):
    """``first`` is full or factors; ``second`` full, factors or tucker; ``sizes`` is (o1, i1)."""
    out, inside, *kernel = shape
    o1, i1 = sizes or (_divisor(out), _divisor(inside))
    o2, i2 = out // o1, inside // i1
    stored = {"lokr_w1": (o1, i1)}
    if first == "factors":
        stored = {"lokr_w1_a": (o1, rank), "lokr_w1_b": (rank, i1)}
    if second == "full":
        stored["lokr_w2"] = (o2, i2, *kernel)
    elif second == "factors":
        stored |= {"lokr_w2_a": (o2, rank), "lokr_w2_b": (rank, i2 * math.prod(kernel))}
    else:
        stored |= {
            "lokr_w2_a": (rank, o2),
            "lokr_w2_b": (rank, i2),
            "lokr_t2": (rank, rank, *kernel),
        }
    tensors = {
        f"{name}.{role}": normal(size, generator, std, torch.float16)
        for role, size in stored.items()
    }
    # LyCORIS writes alpha = rank beside two full matrices, ai-toolkit 9999999999; neither counts.
    return tensors | {f"{name}.alpha": torch.tensor(9999999999.0 if rank is None else 1.3)}


def _divisor(size):
    return next(n for n in (3, 2, 5, 7, 1) if size % n == 0)


def oft(name, shape, generator, size=None, alpha=0.0, rescale=False, std=0.2):
    size = size or next(n for n in (4, 3, 2, 5, 7, 1) if shape[0] % n == 0)
    blocks = normal((shape[0] // size, size, size), generator, std, torch.float16)
    return _turning(name, shape, blocks, generator, alpha, rescale)


def boft(name, shape, generator, size=4, alpha=0.0, rescale=False, std=0.2):
    count = shape[0] // size
    blocks = normal((count.bit_length(), count, size, size), generator, std, torch.float16)
    return _turning(name, shape, blocks, generator, alpha, rescale)


def _turning(name, shape, blocks, generator, alpha, rescale):
    tensors = {f"{name}.oft_blocks": blocks, f"{name}.alpha": torch.tensor(alpha)}
    if rescale:
        numbers = 1 + normal((shape[0], *[1] * (len(shape) - 1)), generator, 0.2)
        tensors[f"{name}.rescale"] = numbers
    return tensors


def own(tensors, name):
    """The tensors of one module by suffix, float64."""
    return {
        key.removeprefix(f"{name}."): value.double()
        for key, value in tensors.items()
        if key.startswith(f"{name}.")
    }


def change64(tensors, name, base, strength=1.0):
    """What a module adds to ``base`` at a strength, from the definitions in float64."""
    wide, base = own(tensors, name), base.double()
    if "oft_blocks" in wide:
        return _turned64(wide, base, strength) - base
    change = _loha64(wide) if "hada_w1_a" in wide else _lokr64(wide)
    change = change.reshape(base.shape)
    if "dora_scale" in wide:
        stored, patched = wide["dora_scale"], base + change
        axis = 0 if stored.shape[0] == base.shape[0] else 1
        others = [dim for dim in range(base.dim()) if dim != axis]
        change = patched * stored / patched.square().sum(others, keepdim=True).sqrt() - base
    return strength * change


def _loha64(wide):
    products = []
    for n in "12":
        a, b, core = (wide.get(f"hada_{part}") for part in (f"w{n}_a", f"w{n}_b", f"t{n}"))
        products.append(a @ b if core is None else torch.einsum("ij...,ip,jr->pr...", core, a, b))
    return products[0] * products[1] * wide["alpha"].item() / len(wide["hada_w1_b"])


def _lokr64(wide):
    first = wide["lokr_w1"] if "lokr_w1" in wide else wide["lokr_w1_a"] @ wide["lokr_w1_b"]
    if "lokr_w2" in wide:
        second = wide["lokr_w2"]
    elif "lokr_t2" in wide:
        core, a, b = (wide[f"lokr_{part}"] for part in ("t2", "w2_a", "w2_b"))
        second = torch.einsum("ij...,ip,jr->pr...", core, a, b)
    else:
        second = wide["lokr_w2_a"] @ wide["lokr_w2_b"]
    scale = 1.0
    for factor in ("lokr_w1_b", "lokr_w2_b"):
        if factor in wide:
            scale = wide["alpha"].item() / len(wide[factor])
    return scale * torch.kron(
        first.reshape(*first.shape, *[1] * (second.dim() - 2)), second.contiguous()
    )


def _turned64(wide, base, strength):
    """Every stage as one matrix of all outputs."""
    blocks = wide["oft_blocks"]
    is_butterfly = blocks.dim() == 4
    skew = blocks - blocks.transpose(-1, -2)
    bound = wide["alpha"].item() * len(base)
    if bound > 0 and skew.norm() > bound:
        skew = skew * bound / skew.norm()
    identity, turned = torch.eye(skew.shape[-1]).double(), base.flatten(1)
    matrices = (identity + skew) @ torch.linalg.inv(identity - skew)
    for stage, turns in enumerate(matrices if is_butterfly else matrices[None]):
        whole = torch.block_diag(*(turns if is_butterfly else turns.transpose(-1, -2)))
        if is_butterfly:
            half = 2**stage * (skew.shape[-1] // 2)
            order = torch.arange(len(base)).reshape(-1, 2, half).transpose(1, 2).flatten()
            swap = torch.eye(len(base)).double()[order]
            whole = swap.T @ whole @ swap
        turned = turned + strength * (whole @ turned - turned)
    if "rescale" in wide:
        turned = turned * (1 + strength * (wide["rescale"].reshape(-1, 1) - 1))
    return turned.reshape(base.shape)


TOY_KINDS = {"linear": loha, "conv": lokr, "q": lokr, "v": oft, "k": loha, "projection": oft}


def toy_kinds(name, generator, modules=tuple(TOY_KINDS), std=0.2):
    """A file of all three kinds: a kernel, rows of a storage, and a transposed weight."""
    tensors = {}
    for module in modules:
        tensors |= TOY_KINDS[module](module, TARGETS[module].weight.shape, generator, std=std)
    return lora_from_tensors(name, tensors)
