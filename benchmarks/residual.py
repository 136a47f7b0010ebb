"""How large is the `residual` undo record of published LoRA files, as a share of a full copy?

Base weights N(0, 0.03**2) of SD1.5's shapes, seed 0. rho = ||delta|| / ||W|| per weight; the median
is printed. Files with nameless keys are read through names found by comparing one of them with
its re-keyed twin. Usage: residual.py FOLDER, with published files of SD1.5 in it.
"""

import argparse
import statistics
from pathlib import Path

import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.lora import Lora, load_lora, lora_from_tensors
from lora_workbench.lora_core.models.table import table_for_base
from lora_workbench.lora_core.patching.copies import patched_tensors
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.stack import StackItem, make_plan

from harness import machine

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn)
TWINS = ("analog_svd_rank4.safetensors", "analog_svd_rank4.kohya.safetensors")


def nameless_names(folder: Path) -> dict[str, str]:
    """Number to kohya name, from a nameless file and its twin with the same values."""
    nameless, twin = (load_lora(next(folder.rglob(name))).file for name in TWINS)
    by_value = {}
    for key in twin.tensors:
        if key.endswith("lora_up.weight"):
            by_value[bytes(twin.read(key).view(torch.uint8).flatten().tolist())] = key
    found = {}
    for key in nameless.tensors:
        if key.endswith(":up"):
            value = bytes(nameless.read(key).view(torch.uint8).flatten().tolist())
            found[key.removesuffix(":up")] = by_value[value].removesuffix(".lora_up.weight")
    return found


def named(lora: Lora, names: dict[str, str]) -> Lora:
    """A nameless file under kohya names."""
    tensors = {}
    for number, name in names.items():
        for role in ("up", "down"):
            tensors[f"{name}.lora_{role}.weight"] = lora.file.read(f"{number}:{role}")
    return lora_from_tensors(lora.name, tensors)


def published(folder: Path) -> list[Lora]:
    """Every file of the folder that can be applied, nameless ones renamed."""
    names = nameless_names(folder)
    loras = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".bin"):
            lora = load_lora(path)
            loras.append(named(lora, names) if "cloneofsimo" in lora.formats else lora)
    return loras


def measure(lora: Lora, dtype: torch.dtype, table: object) -> tuple[float, float, bool]:
    """Median rho, record size as a share of a copy, and whether the base came back."""
    plan = make_plan([StackItem(lora)], table)
    generator = torch.Generator().manual_seed(0)
    shapes = {t.target_key: t.shape for t in table.targets}
    base = {key: torch.randn(shapes[key], generator=generator) * 0.03 for key in plan.terms}
    rhos = [
        float((new - base[key]).norm() / base[key].norm())
        for key, new in patched_tensors(plan, base)
    ]
    weights = {key: weight.to(dtype) for key, weight in base.items()}
    before = {key: weight.clone() for key, weight in weights.items()}
    ledger = MergeLedger(weights, "residual")
    ledger.apply(plan)
    share = ledger.nbytes() / sum(w.numel() * w.element_size() for w in weights.values())
    ledger.unmerge()
    exact = all(
        torch.equal(weights[key].view(torch.uint8), before[key].view(torch.uint8))
        for key in weights
    )
    return statistics.median(rhos), share, exact


def main() -> None:
    """Print one line per file and dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("published"))
    folder = parser.parse_args().folder
    if not folder.is_dir():
        print(f"skipped: no published files in {folder}")
        return
    print(machine(), "| base N(0, 0.03^2), seed 0")
    table = table_for_base("sd15")
    for lora in published(folder):
        for dtype in DTYPES:
            try:
                rho, share, exact = measure(lora, dtype, table)
            except LoraError as error:
                print(f"{lora.name:45} {error.headline}")
                break
            restored = "base restored bit for bit" if exact else "BASE LOST"
            print(f"{lora.name:45} {str(dtype)[6:]:14} rho {rho:.4f}  {share:6.1%}  {restored}")


if __name__ == "__main__":
    main()
