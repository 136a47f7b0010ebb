"""``lora-workbench demo``: the main job on a full-size model, with a proof at the end."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..lora_core.errors import LoraError
from ..lora_core.explain import FITS, Report, explain
from ..lora_core.family import known_tables
from ..lora_core.files.safetensors_file import SafetensorsFile, open_safetensors
from ..lora_core.lora import Lora, load_lora
from ..lora_core.models import ModelTable, table_from_shapes
from ..lora_core.patching.base_file import base_files
from ..lora_core.patching.ledger import MergeLedger
from ..lora_core.stack import Plan, StackItem, make_plan
from ..lora_core.weighting import Weighting
from .demo_model.write import write_example_models
from .demo_pictures import show_pictures
from .sample_files import WEIGHT_STD, write_random_checkpoint, write_random_lora
from .text_table import size_text, text_table
from .train_command import require_libraries

HELP = "show the main job: a full-size merge undone bit for bit, and pictures"
DESCRIPTION = """\
Write a random SD1.5 (UNet and text encoder, fp16, 1.97 GB) and LoRAs in three writers' formats to a
temporary folder. Inspect them, merge them into the weights in memory, change a strength, un-merge,
and compare every byte with the checkpoint file. The folder is removed at the end.

Then run the example graphs without ComfyUI, on a small model that knows shapes and colours and two
LoRAs for it, which this trainer made, and put the pictures into one labelled grid."""
EPILOG = """\
Needs 2 GB on the disk and 3 GB of memory; the pictures need the extra [headless].

examples:
  lora-workbench demo
  lora-workbench demo --models models      then: lora-workbench run GRAPH --models models

exit codes: 0 everything restored bit for bit; 1 not, or failed while running; 2 the input is
wrong."""

_SPACE = 2_200_000_000
_SUFFIXES = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True)
class _Sample:
    """One generated LoRA and how the demo applies it."""

    file: str
    naming: str
    rank: int
    alpha: float
    strength: float
    weighting: str = ""


_SAMPLES = (
    _Sample("lighthouse.safetensors", "kohya", 16, 8.0, 0.8, "IN04-08=0.5, OUT03-05 & attn2=0"),
    _Sample("diffusers.safetensors", "diffusers", 8, 8.0, 0.5),
    _Sample("peft.safetensors", "peft", 4, 8.0, -0.3, "te=0"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    one = parser.add_mutually_exclusive_group()
    one.add_argument(
        "--real-files",
        metavar="DIR",
        type=Path,
        help="also inspect, merge and un-merge the SD1.5 LoRA files in this folder",
    )
    one.add_argument(
        "--models",
        metavar="DIR",
        type=Path,
        help="only write the small model and its LoRAs into this folder, under the names that the "
        "example graphs use",
    )
    parser.add_argument(
        "--folder", metavar="DIR", type=Path, help="where to make the temporary folder"
    )
    one.add_argument(
        "--train",
        action="store_true",
        help="train a LoRA on drawn pictures instead, and show what it does; needs [train]",
    )
    parser.add_argument(
        "--grid",
        metavar="FILE",
        type=Path,
        default=Path("lora-workbench-demo.png"),
        help="where the grid of pictures goes, over an earlier one; default %(default)s",
    )


def run(options: argparse.Namespace) -> int:
    """Run the demo; 1 when the base was not restored."""
    if options.models is not None:
        print("\n".join(map(str, write_example_models(options.models))))
        return 0
    if options.train:
        require_libraries()
        from .demo_train import show_training

        return 0 if show_training(options.grid, options.folder) else 1
    started = time.perf_counter()
    _require_space(options.folder or Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix="lora-workbench-demo-", dir=options.folder) as scratch:
        restored = _demonstrate(Path(scratch), _real_files(options.real_files))
        restored &= show_pictures(Path(scratch), options.grid)
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    return 0 if restored else 1


def _require_space(folder: Path) -> None:
    if not folder.is_dir():
        raise LoraError("The folder does not exist.", {"Folder": folder}, "give --folder another.")
    free = shutil.disk_usage(folder).free
    if free < _SPACE:
        raise LoraError(
            "Too little space for the demo's checkpoint.",
            {"Needed": size_text(_SPACE), "Free": size_text(free), "Folder": folder},
            "give a folder with more space: --folder DIR.",
        )


def _real_files(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    found = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    if not found:
        raise LoraError(
            "No LoRA file was found.",
            {"Folder": folder, "Endings": ", ".join(_SUFFIXES)},
            "give --real-files a folder with LoRA files.",
        )
    return found


def _demonstrate(folder: Path, real_files: Sequence[Path]) -> bool:
    checkpoint = _write_files(folder)
    table = table_from_shapes({key: info.shape for key, info in checkpoint.tensors.items()})
    loras = [load_lora(folder / sample.file) for sample in _SAMPLES]
    published = [load_lora(path) for path in real_files]
    fitting = _inspect([*loras, *published])
    stack = [
        StackItem(lora, sample.strength, sample.strength, Weighting.parse(sample.weighting))
        for lora, sample in zip(loras, _SAMPLES, strict=True)
    ]
    return _merge_and_unmerge(
        checkpoint, table, stack, [lora for lora in published if lora in fitting]
    )


def _write_files(folder: Path) -> SafetensorsFile:
    print(f"1. A random SD1.5 checkpoint, N(0, {WEIGHT_STD}^2), and three LoRAs in {folder}")
    started = time.perf_counter()
    write_random_checkpoint(folder / "sd15-random.safetensors")
    for seed, sample in enumerate(_SAMPLES):
        write_random_lora(folder / sample.file, sample.naming, sample.rank, sample.alpha, seed)
    checkpoint = open_safetensors(folder / "sd15-random.safetensors")
    nbytes = sum(info.nbytes for info in checkpoint.tensors.values())
    seconds = time.perf_counter() - started
    print(f"   {len(checkpoint.tensors)} tensors, {size_text(nbytes)}, written in {seconds:.1f} s")
    return checkpoint


def _inspect(loras: Sequence[Lora]) -> list[Lora]:
    """Print what each file holds; return those that fit."""
    print("\n2. Inspect: every tensor of each file is accounted for")
    tables = known_tables()
    reports = [explain(lora, tables["sd15"], "sd15", tables) for lora in loras]
    head = ("file", "format", "verdict", "tensors used", "weights", "rank", "scale")
    _print_table([head, *map(_inspected, reports)])
    return [report.lora for report in reports if report.verdict == FITS]


def _inspected(report: Report) -> tuple[object, ...]:
    used = report.binding.used()
    scales = sorted({bound.module.scale for bound in used if bound.module.scale is not None})
    ranks = sorted({bound.module.rank for bound in used if bound.module.rank is not None})
    return (
        report.lora.name,
        ", ".join(report.lora.formats),
        f"{report.verdict} {report.base}" if report.verdict == FITS else report.verdict,
        f"{report.tensors_used} of {len(report.rows)}",
        len(used),
        ", ".join(map(str, ranks)) or "-",
        ", ".join(f"{scale:g}" for scale in scales) or "-",
    )


def _merge_and_unmerge(
    checkpoint: SafetensorsFile,
    table: ModelTable,
    stack: Sequence[StackItem],
    published: Sequence[Lora],
) -> bool:
    print("\n3. Merge into the weights in memory, change a strength, un-merge")
    for item in stack:
        weighting = item.weighting.to_text() or "none"
        print(f"   {item.lora.name}: strength {item.strength_model:g}, weighting {weighting}")
    weights = checkpoint.read_many(checkpoint.tensors)
    ledger = MergeLedger(weights, "auto", base_files(checkpoint))
    changed = [*stack[:-1], StackItem(stack[-1].lora, 0.6, 0.6, stack[-1].weighting)]
    steps = {
        "merge 3 LoRAs": make_plan(stack, table),
        f"{stack[-1].lora.name} to 0.6": make_plan(changed, table),
        "un-merge": Plan({}),
    }
    if published:
        steps[f"merge {len(published)} published files"] = make_plan(
            [StackItem(lora) for lora in published], table
        )
        steps["un-merge them"] = Plan({})
    head = ("step", "weights changed", "differ from file", "seconds", "undo rung", "undo memory")
    rows = [_step(name, plan, ledger, checkpoint, weights) for name, plan in steps.items()]
    _print_table([head, *rows])
    print("   undo rung 'file': the base is read again from its checkpoint, nothing is kept")
    different = sum(1 for _ in _different(checkpoint, weights))
    nbytes = sum(info.nbytes for info in checkpoint.tensors.values())
    answer = f"no, {different} tensors differ" if different else "yes"
    print(f"\n4. Every bit of {len(weights)} tensors ({size_text(nbytes)}) compared with the file")
    print(f"   base restored bit for bit: {answer}")
    return not different


def _step(
    name: str,
    plan: Plan,
    ledger: MergeLedger,
    checkpoint: SafetensorsFile,
    weights: Mapping[str, Tensor],
) -> tuple[object, ...]:
    started = time.perf_counter()
    written = ledger.apply(plan)
    seconds = time.perf_counter() - started
    rungs = ", ".join(f"{count} {rung}" for rung, count in ledger.rungs().items())
    different = sum(1 for _ in _different(checkpoint, weights))
    memory = size_text(ledger.nbytes()) if ledger.rungs() else "-"
    return name, len(written), different, f"{seconds:.2f}", rungs or "-", memory


def _different(checkpoint: SafetensorsFile, weights: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the tensors that are not, bit for bit, those of the file."""
    for key, weight in weights.items():
        if not torch.equal(weight.view(torch.uint8), checkpoint.read(key).view(torch.uint8)):
            yield key


def _print_table(rows: Sequence[Sequence[object]]) -> None:
    print("\n".join(text_table(rows, indent="   ")))
    sys.stdout.flush()
