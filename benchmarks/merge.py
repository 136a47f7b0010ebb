"""How close are merge, change and un-merge to the floor of copies and one float32 GEMM?

The 192 attention, feed-forward and projection modules of SD1.5's UNet at full size (267 M
weights). Floor = C + G: C, one ``out.copy_(w)`` per copy the mode needs; G, one float32
``torch.mm`` of the concatenated factors per weight; both into memory that was there before.
All sides run in a process that keeps freed memory, as a GPU's caching allocator does
(``harness.keep_memory``): fresh pages would cost the copies more than the copying. Figures are
min / min over interleaved repetitions; min/median/max in milliseconds beside them.
"""

import argparse
import gc
import tempfile
from functools import partial
from pathlib import Path

import torch

from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.models.table import table_for_base
from lora_workbench.lora_core.patching import kernels
from lora_workbench.lora_core.patching.base_file import base_files
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.stack import StackItem, make_plan

from harness import REPETITIONS, Timings, keep_memory, machine

PARTS = ("attn1", "attn2", "ff.net", "proj_in", "proj_out")
COPIES = {"full merge": 2, "full change": 1, "full unmerge": 1}
COPIES |= {"file merge": 2, "file change": 2, "file unmerge": 2}
COPIES |= {"residual merge": 1, "residual change": 1, "residual unmerge": 1}
RHO = 0.08  # ||delta|| / ||W||


def modules(table):
    """The 192 modules, as targets with two or more dimensions."""
    return [
        target
        for target in table.targets
        if target.component == "unet"
        and len(target.shape) >= 2
        and any(part in target.canonical for part in PARTS)
    ]


def random_weights(targets, dtype):
    """N(0, 0.03**2) weights by target name."""
    generator = torch.Generator().manual_seed(0)
    return {
        t.target_key: (torch.randn(t.shape, generator=generator) * 0.03).to(dtype) for t in targets
    }


def random_lora(targets, rank, seed):
    """A kohya LoRA whose deltas have the relative size RHO, and its float32 factors."""
    generator = torch.Generator().manual_seed(seed)
    tensors, factors = {}, {}
    for target in targets:
        out, columns = target.shape[0], torch.Size(target.shape[1:]).numel()
        down = torch.randn(rank, columns, generator=generator)
        up = torch.randn(out, rank, generator=generator)
        up *= RHO * 0.03 / rank**0.5
        name = "lora_unet_" + target.canonical.removesuffix(".weight").replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = down.half().reshape(rank, *target.shape[1:])
        tensors[f"{name}.lora_up.weight"] = up.half()
        factors[target.target_key] = (up, down)
    return lora_from_tensors(f"rank{rank}-{seed}", tensors), factors


def floor_steps(weights, factors):
    """The two parts of the floor as steps."""
    outs = {key: torch.empty_like(weight) for key, weight in weights.items()}
    products = {key: torch.empty(up.shape[0], down.shape[1]) for key, (up, down) in factors.items()}

    def copy():
        for key, weight in weights.items():
            outs[key].copy_(weight)

    def gemm():
        for key, (up, down) in factors.items():
            torch.mm(up, down, out=products[key])

    return copy, gemm


def run_case(table, targets, weights, rank, files, rungs, repetitions):
    """Timings of the floor and of each rung, interleaved."""
    lora, factors = random_lora(targets, rank, seed=1)
    plan = make_plan([StackItem(lora, 1.0)], table)
    other = make_plan([StackItem(lora, 0.5)], table)
    copy, gemm = floor_steps(weights, factors)
    timings = Timings()
    for _ in range(repetitions):
        timings.run("C", copy)
        timings.run("G", gemm)
        for rung in rungs:
            ledger = MergeLedger(weights, rung, files if rung == "file" else None)
            timings.run(f"{rung} merge", partial(ledger.apply, plan))
            timings.run(f"{rung} change", partial(ledger.apply, other))
            timings.run(f"{rung} unmerge", ledger.unmerge)
    return timings


def report(dtype, rank, timings):
    """One line per mode: ratio to its floor."""
    c, g = timings.best("C"), timings.best("G")
    print(f"{dtype!s:15} rank {rank:3}  C {timings.spread('C')}  G {timings.spread('G')} ms")
    for mode, copies in COPIES.items():
        if mode not in timings.seconds:
            continue
        floor = copies * c + (0 if mode in ("full unmerge", "file unmerge") else g)
        ratio = timings.best(mode) / floor
        print(f"    {mode:17} {ratio:5.2f} x floor {floor * 1e3:4.0f} ms   {timings.spread(mode)}")


def compare_with_diffusers(table, targets, repetitions):
    """Merge of one and of four rank-16 LoRAs against diffusers' ``fuse_lora``, fp16."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    config = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    unet = unet.to_empty(device="cpu").to(torch.float16)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    names = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    for number in range(4):
        unet.add_adapter(
            LoraConfig(r=16, lora_alpha=16, init_lora_weights=False, target_modules=names),
            adapter_name=f"lora{number}",
        )
    weights = random_weights(targets, torch.float16)
    loras = [random_lora(targets, 16, seed)[0] for seed in range(4)]
    for count in (1, 4):
        plan = make_plan([StackItem(lora, 1.0) for lora in loras[:count]], table)
        adapters = [f"lora{number}" for number in range(count)]
        timings = Timings()
        for _ in range(repetitions):
            timings.run("diffusers", partial(unet.fuse_lora, adapter_names=adapters))
            unet.unfuse_lora()
            ledger = MergeLedger(weights, "full")
            timings.run("ours", partial(ledger.apply, plan))
            ledger.unmerge()
        ratio = timings.best("diffusers") / timings.best("ours")
        print(
            f"{count} LoRA, fp16, rank 16: full merge {ratio:.2f} x faster than diffusers "
            f"fuse_lora ({timings.spread('ours')} against {timings.spread('diffusers')} ms)"
        )


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("--dtypes", nargs="*", default=["float16", "bfloat16", "float32"])
    parser.add_argument("--rungs", nargs="*", default=["full", "file", "residual"])
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--plain", action="store_true", help="torch only, no compiled loops")
    parser.add_argument("--no-peer", action="store_true", help="leave diffusers out")
    options = parser.parse_args()
    keep_memory()
    if options.plain:
        kernels._loops = lambda: None
    print(machine(), "| milliseconds are min/median/max")
    table = table_for_base("sd15")
    targets = modules(table)
    total = sum(torch.Size(t.shape).numel() for t in targets)
    print(f"{len(targets)} modules, {total / 1e6:.0f} M weights, seed 0")
    for name in options.dtypes:
        dtype = getattr(torch, name)
        weights = random_weights(targets, dtype)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "base.safetensors")
            write_safetensors(path, weights)
            files = base_files(open_safetensors(path))
            for rank in options.ranks:
                case = (rank, files, options.rungs, options.repetitions)
                timings = run_case(table, targets, weights, *case)
                report(dtype, rank, timings)
                gc.collect()
    if not options.no_peer:
        compare_with_diffusers(table, targets, options.repetitions)


if __name__ == "__main__":
    main()
