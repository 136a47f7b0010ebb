"""Small models with PEFT's layers in them, filled with numbers, and PEFT's own word on the deltas.

    python -m tests.training.peft_cases FOLDER

writes each case as a file in kohya's names, and its deltas, for tests in another process.
"""

import sys
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.models import ModelTable, Target, table_from_shapes
from lora_workbench.training.export import TrainedModule, export, trained_modules

from ..headless.tiny_checkpoints import randomized, text_encoder, unet_arguments

FAMILIES = ("sd15", "sdxl")
ENCODERS = {"sd15": ("l",), "sdxl": ("l", "g")}
LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_in", "proj_out")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
CONV = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv")
CASES = {
    "alpha = r": {"r": 4, "lora_alpha": 4},
    "alpha = 2r": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 4, "use_rslora": True},
    "rank pattern": {
        "r": 4,
        "lora_alpha": 3,
        "rank_pattern": {"to_q": 8, "q_proj": 2},
        "alpha_pattern": {"to_v": 7, "fc1": 1},
    },
    "conv": {"r": 4, "lora_alpha": 2},
    "pissa": {"r": 4, "lora_alpha": 6, "init_lora_weights": "pissa"},
}
DORA = {"r": 4, "lora_alpha": 6, "use_dora": True}


@dataclass(frozen=True)
class Live:
    """One trained model: components with layers in them, and the same components without."""

    parts: dict[str, nn.Module]
    clean: dict[str, nn.Module]
    table: ModelTable
    modules: tuple[TrainedModule, ...]
    deltas: dict[Target, Tensor]  # of the merged weight, float64

    def component(self, name: str) -> list[TrainedModule]:
        return [module for module in self.modules if module.target.component == name]


@lru_cache
def clean_parts(family: str) -> dict[str, nn.Module]:
    """The UNet and text encoders by their name in a pipeline; copy before changing them."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    parts = {"unet": randomized(UNet2DConditionModel(**unet_arguments(family)), 1)}
    for number, encoder in enumerate(ENCODERS[family]):
        name = f"text_encoder_{number + 1}" if number else "text_encoder"
        parts[name] = text_encoder(encoder, 2 + number)
    return parts


def table_of(family: str) -> ModelTable:
    """The names of all weights of ``clean_parts``."""
    shapes = {
        f"{name}.{key}": tuple(value.shape)
        for name, part in clean_parts(family).items()
        for key, value in part.state_dict().items()
    }
    return table_from_shapes(shapes)


def chosen(part: nn.Module, endings: tuple[str, ...], kinds=nn.Linear | nn.Conv2d) -> list[str]:
    return [
        path
        for path, module in part.named_modules()
        if isinstance(module, kinds) and any(path.endswith(f".{ending}") for ending in endings)
    ]


@lru_cache
def trained(family: str, settings: str) -> Live:
    """The case ``settings`` (a key of ``CASES``, or ``"dora"``) of a family; seeded."""
    clean = clean_parts(family)
    options = DORA if settings == "dora" else CASES[settings]
    unet = LINEAR + CONV if settings in ("conv", "dora") else LINEAR
    kinds = nn.Linear if settings == "pissa" else nn.Linear | nn.Conv2d  # PEFT has no PiSSA conv
    parts = {
        name: injected(part, chosen(part, unet if name == "unet" else TEXT, kinds), options)
        for name, part in ((name, deepcopy(part)) for name, part in clean.items())
    }
    table = table_of(family)
    by_key = {target.target_key: target for target in table.targets}
    modules, deltas = [], {}
    for name, (part, initial) in parts.items():
        layers = dict(peft_layers(part))
        targets = {path: by_key[f"{name}.{path}.weight"] for path in layers}
        modules += trained_modules(part, targets, "default", initial)
        bare = dict(clean[name].named_modules())
        for path, layer in layers.items():
            deltas[targets[path]] = merged_delta(layer, bare[path].weight, "default")
    layered = {name: part for name, (part, _) in parts.items()}
    return Live(layered, clean, table, tuple(modules), deltas)


def injected(part: nn.Module, paths: list[str], options: dict):
    """The part with layers, and PiSSA's first factors by path."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(3)
    inject_adapter_in_model(LoraConfig(target_modules=paths, **options), part, "default")
    is_pissa = options.get("init_lora_weights") == "pissa"
    initial, generator = {}, torch.Generator().manual_seed(4)
    with torch.no_grad():
        for path, layer in peft_layers(part):
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            if is_pissa:
                initial[path] = (down.clone(), up.clone())
            for factor in (down, up):
                noise = torch.randn(factor.shape, generator=generator) * 0.3
                factor.copy_(factor + noise * factor.std() if is_pissa else noise)
            if "default" in layer.lora_magnitude_vector:
                magnitude = layer.lora_magnitude_vector["default"].weight
                magnitude.mul_(0.7 + 0.6 * torch.rand(magnitude.shape, generator=generator))
    return part, initial


def peft_layers(part: nn.Module):
    from peft.tuners.lora import LoraLayer

    return [(path, m) for path, m in part.named_modules() if isinstance(m, LoraLayer)]


def merged_delta(layer: nn.Module, base_weight: Tensor, adapter: str) -> Tensor:
    """What PEFT's own merge changes ``base_weight`` by, float64; the layer stays as it is.

    Not the difference of float32 weights, which would round: the layer is copied to float64.
    """
    merged = deepcopy(layer).double()
    merged.merge(adapter_names=[adapter])
    return merged.get_base_layer().weight.detach() - base_weight.double()


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def main() -> None:
    folder = Path(sys.argv[1])
    for family in FAMILIES:
        for number, case in enumerate(CASES):
            live, name = trained(family, case), f"{family}-{number}"
            export(live.modules, live.table, folder / f"{name}.safetensors", dtype="fp32")
            deltas = {
                f"{target.component}/{target.canonical}": delta
                for target, delta in live.deltas.items()
            }
            write_safetensors(folder / f"{name}-deltas.safetensors", deltas)


if __name__ == "__main__":
    main()
