"""How long does it take to know names, shapes, alphas and targets of a LoRA file?

Warm cache, model table built beforehand; min over repetitions, min/median/max printed.
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from lora_workbench.lora_core.binding import bind
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.lora_core.models.table import table_for_base

from harness import REPETITIONS, interleaved, machine

SD15_TENSORS, SDXL_TENSORS = 792, 5262


def kohya_file(path, table, tensors):
    """A kohya file of so many tensors (three a module) for a base, rank 4, fp16."""
    written, seen = {}, set()
    for target in table.targets:
        name = _kohya_name(target)
        if len(target.shape) < 2 or name in seen or len(written) + 3 > tensors:
            continue
        seen.add(name)
        columns = torch.Size(target.shape[1:]).numel()
        written[f"{name}.alpha"] = torch.tensor(4.0, dtype=torch.float16)
        down = torch.zeros(4, columns, dtype=torch.float16)
        written[f"{name}.lora_down.weight"] = down.reshape(4, *target.shape[1:])
        written[f"{name}.lora_up.weight"] = torch.zeros(target.shape[0], 4, dtype=torch.float16)
    number = 0
    while len(written) + 3 <= tensors:  # more modules than the base has: unmatched ones
        name = f"lora_unet_extra_{number}"
        written[f"{name}.alpha"] = torch.tensor(4.0, dtype=torch.float16)
        written[f"{name}.lora_down.weight"] = torch.zeros(4, 64, dtype=torch.float16)
        written[f"{name}.lora_up.weight"] = torch.zeros(64, 4, dtype=torch.float16)
        number += 1
    write_safetensors(path, written)
    return len(written)


def _kohya_name(target):
    prefix = {"unet": "lora_unet_", "te1": "lora_te1_", "te2": "lora_te2_"}[target.component]
    return prefix + target.canonical.removesuffix(".weight").replace(".", "_")


def main():
    """Print the table."""
    print(machine(), "| milliseconds are min/median/max")
    with tempfile.TemporaryDirectory() as folder:
        for base, tensors, bar in (("sd15", SD15_TENSORS, 10), ("sdxl", SDXL_TENSORS, 60)):
            table = table_for_base(base)
            path = Path(folder, f"{base}.safetensors")
            count = kohya_file(path, table, tensors)
            steps = {
                "ours": lambda path=path, table=table: bind(load_lora(path), table),
                "safetensors.load_file (tensors only)": lambda path=path: load_file(path),
            }
            timings = interleaved(steps, 3 * REPETITIONS)
            for name in steps:
                note = f"  bar {bar} ms" if name == "ours" else ""
                print(f"{base} {count} tensors  {name:38} {timings.spread(name)} ms{note}")


if __name__ == "__main__":
    main()
