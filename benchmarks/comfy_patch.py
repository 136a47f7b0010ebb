"""What does a changed strength cost in ComfyUI, through our patcher and through core's loaders?

SD1.5's UNet at full size, random weights, 192 attention, feed-forward and projection modules per
LoRA, one process. A repetition changes the strength of the last LoRA of a stack, as a user does:
ours plans, patches a clone and loads it; core runs ``load_lora_for_models`` for the last loader of
its chain (the others are cached) and loads the result. Floor = C + G: one copy of every touched
weight, and one float32 GEMM of the concatenated factors. All sides run in a process that keeps
freed memory, as a GPU's caching allocator does (``harness.keep_memory``). Figures are min / min
over interleaved repetitions; min/median/max in milliseconds beside them. Bars: for two or more
LoRAs at least 2 x faster than core at rank 64 and 3 x at rank 16; at most 1.5 x of the floor; load
+ map at most 15 ms.
"""

import argparse
import gc
import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from lora_workbench.lora_core.binding import bind
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.lora_core.stack import StackItem, make_plan

from harness import REPETITIONS, Timings, keep_memory, machine

TESTS = Path(__file__).resolve().parents[1] / "tests" / "comfy"
PARTS = ("attn1", "attn2", "ff.net", "proj_in", "proj_out")
FASTER_BAR = {16: 3.0, 64: 2.0}  # times core's speed by rank, for two or more LoRAs
FLOOR_BAR = 1.5  # times the floor
LOAD_BAR = 15e-3  # seconds
RHO = 0.08  # ||delta|| / ||W||
STD = 0.03


def start_comfyui(base_directory):
    """Make ComfyUI importable, on the CPU; the tests know where it is."""
    sys.path.insert(0, str(TESTS))
    import comfy_source
    import torchvision_stub

    torchvision_stub.install()
    sys.path.insert(0, str(comfy_source.comfyui_path()))
    arguments = ["main.py", "--cpu", "--base-directory", str(base_directory)]
    with mock.patch.object(sys, "argv", arguments):
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.sd  # reads sys.argv


def random_model(dtype):
    """A patcher over SD1.5's UNet with N(0, STD**2) weights."""
    import comfy.model_patcher
    import comfy.supported_models
    from checkpoints import SD15_UNET

    config = comfy.supported_models.SD15(dict(SD15_UNET))
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    noise = torch.randn(4_000_037, generator=torch.Generator().manual_seed(0)) * STD
    for parameter in model.parameters():
        repeats = -(-parameter.numel() // noise.numel())
        values = noise.repeat(repeats)[: parameter.numel()].reshape(parameter.shape)
        parameter.data.copy_(values)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def write_random_lora(path, targets, rank, seed):
    """A kohya file whose deltas have the relative size RHO."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for target in targets:
        out, columns = target.shape[0], torch.Size(target.shape[1:]).numel()
        down = torch.randn(rank, columns, generator=generator)
        up = torch.randn(out, rank, generator=generator) * RHO * STD / rank**0.5
        name = "lora_unet_" + target.target_key.removeprefix("diffusion_model.")
        name = name.removesuffix(".weight").replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = down.half().reshape(rank, *target.shape[1:])
        tensors[f"{name}.lora_up.weight"] = up.half()
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    write_safetensors(path, tensors, overwrite=True)


def floor_steps(model, loras, targets):
    """The two parts of the floor as steps, into memory that was there before."""
    weights = {t.target_key: model.model.get_parameter(t.target_key) for t in targets}
    outs = {key: torch.empty_like(weight) for key, weight in weights.items()}
    factors = {}
    for lora in loras:
        for module in lora.modules.values():
            down, up = lora.adapter(module, module.parts[0]).tensors()[:2]
            factors.setdefault(module.lora_key, []).append((up.float(), down.float().flatten(1)))
    pairs = [
        (torch.cat([up for up, _ in found], 1), torch.cat([down for _, down in found]))
        for found in factors.values()
    ]
    products = [torch.empty(up.shape[0], down.shape[1]) for up, down in pairs]

    def copy():
        for key, weight in weights.items():
            outs[key].copy_(weight)

    def gemm():
        for (up, down), product in zip(pairs, products, strict=True):
            torch.mm(up, down, out=product)

    return copy, gemm


class Ours:
    """Apply LoRAs, then a load."""

    def __init__(self, model, names, loras):
        self.model, self.names, self.loras = model, names, loras

    def change(self, strength):
        """What the node does."""
        from lora_workbench.hosts.comfy.patches import patched

        *rest, last = self.loras
        stack = [*(StackItem(lora, 0.7) for lora in rest), StackItem(last, strength)]
        plan = make_plan(stack, self.names)
        self.patched, _ = patched(self.model, None, plan, stack, self.names)

    def load(self):
        """What the sampler does first."""
        load(self.patched)


class Core:
    """LoraLoader after LoraLoader, then a load; files stay in memory as its nodes keep them."""

    def __init__(self, model, paths):
        import comfy.sd
        import comfy.utils

        *rest, last = [comfy.utils.load_torch_file(str(path), safe_load=True) for path in paths]
        self.model, self.last = model, last
        for tensors in rest:
            self.model, _ = comfy.sd.load_lora_for_models(self.model, None, tensors, 0.7, 0)

    def change(self, strength):
        """What the last loader does."""
        import comfy.sd

        self.patched, _ = comfy.sd.load_lora_for_models(self.model, None, self.last, strength, 0)

    def load(self):
        """What the sampler does first."""
        load(self.patched)


def load(patcher):
    """Load as a sampler does."""
    from comfy import model_management

    with torch.inference_mode():
        model_management.load_models_gpu([patcher])


def run_case(models, names, targets, paths, repetitions):
    """Timings of the floor and of both sides, interleaved; each side has its own model."""
    loras = [load_lora(path) for path in paths]
    sides = {"ours": Ours(models[0], names, loras), "core": Core(models[1], paths)}
    copy, gemm = floor_steps(models[0], loras, targets)
    timings = Timings()
    for number in range(-1, repetitions):
        for name, side in sides.items():
            strength = 0.5 + 0.01 * number
            run = timings if number >= 0 else Timings()  # the first load patches from nothing
            run.run("C", copy)
            run.run("G", gemm)
            run.run(f"{name} node", partial(side.change, strength))
            run.run(f"{name} load", side.load)
            node, loading = run.seconds[f"{name} node"], run.seconds[f"{name} load"]
            run.seconds.setdefault(name, []).append(node[-1] + loading[-1])
    return timings


def verdict(name, value, is_met):
    """Print how a bar was met; false where it was missed."""
    print(f"    bar {name}: {'met' if is_met else 'MISSED'} ({value})")
    return is_met


def report(dtype, rank, count, timings):
    """One line per case, then its bars; returns which of them were met."""
    floor = timings.best("C") + timings.best("G")
    ours, core = timings.best("ours"), timings.best("core")
    print(
        f"{dtype!s:14} rank {rank:3}  {count} LoRA  ours {ours / floor:4.2f} x floor "
        f"{floor * 1e3:4.0f} ms (load alone {timings.best('ours load') / floor:4.2f} x), "
        f"{core / ours:4.2f} x faster than core"
    )
    for name in ("ours", "ours node", "ours load", "core", "core node", "core load", "C", "G"):
        print(f"    {name:10} {timings.spread(name)}")
    found = [verdict(f"{FLOOR_BAR} x floor", f"{ours / floor:.2f} x", ours <= FLOOR_BAR * floor)]
    if count >= 2 and rank in FASTER_BAR:
        bar = FASTER_BAR[rank]
        found.append(verdict(f"{bar} x core", f"{core / ours:.2f} x", core >= bar * ours))
    return found


def load_and_map(path, model, names, repetitions):
    """A file from disk to targets; both sides from the page cache. Returns whether in time."""
    import comfy.lora
    import comfy.lora_convert
    import comfy.utils

    def core():
        tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
        key_map = comfy.lora.model_lora_keys_unet(model.model, {})
        comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), key_map)

    timings = Timings()
    for _ in range(repetitions):
        timings.run("ours", lambda: bind(load_lora(path), names))
        timings.run("core", core)
    print(f"load + map: ours {timings.spread('ours')} ms, core {timings.spread('core')} ms")
    best = timings.best("ours")
    return verdict(f"{LOAD_BAR * 1e3:.0f} ms", f"{best * 1e3:.1f} ms", best <= LOAD_BAR)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--dtypes", nargs="*", default=["float16", "float32"])
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    options = parser.parse_args()
    keep_memory()
    print(machine(), "| milliseconds are min/median/max")
    met = []
    with tempfile.TemporaryDirectory() as folder:
        start_comfyui(folder)
        from checkpoints import FULL, unet_targets

        from lora_workbench.hosts.comfy.names import ComfyNames

        targets = [t for t in unet_targets(FULL) if any(part in t.module for part in PARTS)]
        for dtype in (getattr(torch, name) for name in options.dtypes):
            models = [random_model(dtype) for _ in range(2)]
            names = ComfyNames(models[0], None)
            for rank in options.ranks:
                paths = [
                    Path(folder, f"{rank}-{n}.safetensors") for n in range(max(options.counts))
                ]
                for seed, path in enumerate(paths):
                    write_random_lora(path, targets, rank, seed)
                met.append(load_and_map(paths[0], models[1], names, options.repetitions))
                for count in options.counts:
                    timings = run_case(models, names, targets, paths[:count], options.repetitions)
                    met += report(dtype, rank, count, timings)
                    gc.collect()
    print(f"bars: {sum(met)} of {len(met)} met")


if __name__ == "__main__":
    main()
