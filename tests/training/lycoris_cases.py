"""Runs of LyCORIS' kinds, and its modules with numbers in every parameter.

    python -m tests.training.lycoris_cases FOLDER

writes each case as a file, with its deltas by LyCORIS, for tests in another process.
"""

import logging
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from lora_workbench.hosts.embedded.trainable import trainable_weights
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.training.config import AdapterConfig
from lora_workbench.training.dropout import Draws
from lora_workbench.training.export import export
from lora_workbench.training.injection import injected
from lora_workbench.training.targets import choose_targets

from .peft_cases import FAMILIES, clean_parts, table_of

COMPONENTS = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}
EVERYTHING = {"targets": ("attn", "ff", "proj", "conv"), "text_encoder": ("te",)}
KINDS = {
    "loha": {"method": "loha", "rank": 3, "alpha": 2.0},
    "loha tucker": {"method": "loha", "rank": 3, "tucker": True},
    "lokr": {"method": "lokr", "rank": 2, "alpha": 3.0},
    "lokr of a factor": {"method": "lokr", "rank": 3, "alpha": 5.0, "factor": 4},
    "lokr both of factors": {"method": "lokr", "rank": 1, "alpha": 2.0, "decompose_both": True},
    "lokr full": {"method": "lokr", "factor": 4, "full_matrix": True},
    "oft": {"method": "oft", "rank": 2},
    "oft constrained": {"method": "oft", "rank": 2, "constraint": 0.02},
    "oft rescaled": {"method": "oft", "rank": 4, "rescale": True},
}
CASES = [("sd15", kind) for kind in KINDS] + [("sdxl", kind) for kind in ("loha", "lokr", "oft")]
"""SDXL's names are others, and its deltas are not."""


def adapter(kind, **options):
    return AdapterConfig(**{**KINDS[kind], **options})


def fill(factors, seed=1, std=0.2, begun=None):
    """Numbers in every parameter, so that no delta is 0; ``begun`` is the size where it was 0."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in factors:
            for role, parameter in each.parameters.items():
                size = std if begun is None or parameter.any() else begun
                noise = torch.randn(parameter.shape, generator=numbers) * size
                parameter.copy_(1 + noise if role == "rescale" else noise)


@contextmanager
def quiet():
    logger = logging.getLogger("LyCORIS")
    before, _ = logger.level, logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def lycoris_module(kind, layer, rank=None, **options):
    """LyCORIS' module as its own tools would make it for a case."""
    import lycoris

    told = {**KINDS[kind], **options}
    classes = {"loha": "LohaModule", "lokr": "LokrModule", "oft": "DiagOFTModule"}
    names = {"rank": "lora_dim", "tucker": "use_tucker", "rescale": "rescaled"}
    method = told.pop("method")
    rank = rank or told.pop("rank", 16)
    told = {names.get(name, name): value for name, value in told.items()}
    with quiet():
        kinds = {"alpha": rank, "lora_dim": rank}
        return getattr(lycoris, classes[method])("m", layer, **{**kinds, **told})


def lycoris_delta(layer):
    """What LyCORIS adds to a weight when it rebuilds it.

    Not ``get_diff_weight``, which multiplies by the scale twice (4.1.3).
    """
    if hasattr(layer, "oft_blocks"):
        return layer.make_weight(1, diff=True).double()
    return layer.get_weight(layer.shape).double()


def bare_layer(target, weight):
    """A layer of its own for a weight."""
    out, inside, *kernel = target.shape
    layer = nn.Conv2d(inside, out, kernel) if kernel else nn.Linear(inside, out)
    layer.weight.data = weight.detach().clone()
    return layer


def exported(family, kind, path, dtype="fp32", begun=None):
    """A case trained nowhere but filled with numbers, as a file; its deltas by LyCORIS."""
    parts = {COMPONENTS[name]: part for name, part in clean_parts(family).items()}
    table = table_of(family)
    weights = trainable_weights(table.targets)
    config = adapter(kind, **EVERYTHING)
    targets = choose_targets(parts, weights, config)
    with injected(parts, targets, config, 0, Draws(0)) as factors:
        fill(factors, begun=begun)
        result = export([each.learnt() for each in factors], table, path, "kohya", dtype)
        with torch.no_grad():
            deltas = {each.trained.target: lycoris_delta(each.layer) for each in factors}
    return result, table, deltas


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for family in FAMILIES:
        weights = {
            f"{target.component}/{target.canonical}": part.get_parameter(
                target.target_key.removeprefix(f"{name}.")
            ).detach()
            for name, part in clean_parts(family).items()
            for target in table_of(family).targets
            if target.component == COMPONENTS[name] and target.target_key.endswith(".weight")
        }
        write_safetensors(folder / f"lycoris-{family}-weights.safetensors", weights)
    for number, (family, kind) in enumerate(CASES):
        name = f"lycoris-{number}"
        _, _, deltas = exported(family, kind, folder / f"{name}.safetensors")
        told = {f"{t.component}/{t.canonical}": delta for t, delta in deltas.items()}
        write_safetensors(folder / f"{name}-deltas.safetensors", told)


if __name__ == "__main__":
    main()
