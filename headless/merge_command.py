"""``lora-workbench merge``: LoRAs into a checkpoint file, giving a new checkpoint file."""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..lora_core.binding import USED, Binding
from ..lora_core.errors import LoraError
from ..lora_core.files.tensor_file import TensorFile, open_tensor_file
from ..lora_core.lora import load_lora
from ..lora_core.models import ModelTable, table_from_shapes
from ..lora_core.patching.merge_file import merge_checkpoint, merged_metadata, refuse_inputs
from ..lora_core.stack import Plan, StackItem, make_plan
from ..lora_core.weighting import Weighting
from .progress import byte_bar
from .text_table import size_text, text_table

HELP = "merge LoRAs into a checkpoint file"
DESCRIPTION = """\
Write a new checkpoint with LoRAs merged into it. The checkpoint is only read.

Each weight is changed once: the sum of all LoRAs is added in float32 and rounded once to the
weight's own precision. Weights that no LoRA changes are copied byte for byte. Needs about 300 MB
of memory whatever the size of the checkpoint."""
EPILOG = """\
--strength, --clip-strength and --weighting belong to the --lora before them.

examples:
  lora-workbench merge base.safetensors --lora detail.safetensors --strength 0.8 -o out.safetensors
  lora-workbench merge base.safetensors \\
      --lora detail.safetensors --strength 0.8 --weighting "IN04-08=0.5, attn2=0" \\
      --lora style.safetensors --strength 1.0 --clip-strength 0 \\
      --output merged.safetensors

The header of the output names what was merged (lora_workbench.merged). An existing file is only
replaced with --force, and never when it is the checkpoint or one of the LoRAs.

exit codes: 0 written; 1 failed while writing; 2 the input is wrong. 1 and 2 leave no file."""


@dataclass
class LoraChoice:
    """What the command line says about one LoRA."""

    file: str
    strength: float = 1.0
    clip_strength: float | None = None
    weighting: str = ""


class _AddLora(argparse.Action):
    """``--lora FILE`` begins a group."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401  argparse's own signature
        option_string: str | None = None,
    ) -> None:
        namespace.loras = [*namespace.loras, LoraChoice(values)]


class _OfLastLora(argparse.Action):
    """An option of the ``--lora`` before it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401  argparse's own signature
        option_string: str | None = None,
    ) -> None:
        if not namespace.loras:
            parser.error(f"{option_string} stands before the first --lora")
        setattr(namespace.loras[-1], self.dest, values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.set_defaults(loras=[])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .safetensors checkpoint")
    parser.add_argument("--lora", metavar="FILE", action=_AddLora, help="a LoRA; repeatable")
    options = (
        ("--strength", "S", float, "of the LoRA before it, -100 to 100; default 1"),
        ("--clip-strength", "S", float, "the same for text encoders; default as --strength"),
        ("--weighting", "RULES", str, 'per block or part, e.g. "IN04-08=0.5, attn2=0"'),
    )
    for flag, metavar, kind, text in options:
        parser.add_argument(
            flag,
            metavar=metavar,
            type=kind,
            action=_OfLastLora,
            default=argparse.SUPPRESS,
            help=text,
        )
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the .safetensors file to write"
    )
    parser.add_argument(
        "--unmatched",
        choices=("report", "error"),
        default="report",
        help="what tensors mean that match no weight; default report",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    parser.add_argument("--json", action="store_true", help="print the receipt as JSON")


def run(options: argparse.Namespace) -> int:
    """Merge, then print the receipt."""
    started = time.perf_counter()
    stack = _stack(options.loras)
    checkpoint = open_tensor_file(options.checkpoint)
    output = _output(options, [checkpoint, *(item.lora.file for item in stack)])
    table = table_from_shapes({name: info.shape for name, info in checkpoint.tensors.items()})
    plan = make_plan(stack, table, options.unmatched)
    loras = [_record(item, plan, table) for item in stack]
    metadata = merged_metadata(checkpoint.metadata, checkpoint.path.name, _named(loras))
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    with byte_bar(total, output.name) as progress:
        changed = merge_checkpoint(checkpoint, plan, output, metadata, options.force, progress)
    receipt = {
        "checkpoint": str(checkpoint.path),
        "output": str(output),
        "bytes": output.stat().st_size,
        "tensors_total": len(checkpoint.tensors),
        "tensors_changed": len(changed),
        "seconds": round(time.perf_counter() - started, 3),
        "loras": loras,
    }
    print(json.dumps(receipt, indent=2) if options.json else "\n".join(_text(receipt)))
    return 0


def _stack(choices: Sequence[LoraChoice]) -> list[StackItem]:
    if not choices:
        raise LoraError(
            "No LoRA to merge.", {"Expected": "--lora FILE, once or more"}, "add --lora FILE."
        )
    return [
        StackItem(
            load_lora(choice.file),
            choice.strength,
            choice.strength if choice.clip_strength is None else choice.clip_strength,
            Weighting.parse(choice.weighting),
        )
        for choice in choices
    ]


def _output(options: argparse.Namespace, inputs: Sequence[TensorFile]) -> Path:
    """The output's path, refused before any work is done."""
    output = Path(options.output)
    if output.suffix != ".safetensors":
        raise LoraError(
            f"{output.name}: the output is a safetensors file.",
            {"Expected": "a name that ends in .safetensors", "Got": output},
            f"write --output {output.with_suffix('.safetensors')}",
        )
    refuse_inputs(output, inputs)
    if output.exists() and not options.force:
        raise LoraError(
            f"{output.name}: a file of this name exists.",
            {"Path": output},
            "choose another name, or add --force to replace it.",
        )
    return output


def _record(item: StackItem, plan: Plan, table: ModelTable) -> dict[str, Any]:
    """What is said about one LoRA in the receipt."""
    lora = item.lora
    binding = next((b for b in plan.bindings if b.lora is lora), None)
    total = len(lora.file.tensors)
    unused = [] if binding is None else [row for row in binding.rows() if row.verdict != USED]
    return {
        "file": str(lora.file.path),
        "sha256": lora.sha256,
        "strength_model": item.strength_model,
        "strength_clip": item.strength_clip,
        "weighting": item.weighting.to_text(),
        "tensors_total": total,
        "tensors_used": 0 if binding is None else total - len(unused),
        "unused": [{"key": row.key, "reason": row.reason} for row in unused],
        "notes": list(_notes(item, binding, table)),
    }


def _notes(item: StackItem, binding: Binding | None, table: ModelTable) -> Iterator[str]:
    if binding is None:
        yield "both strengths are 0: the LoRA changes nothing"
        return
    yield from binding.notes()
    for rule in item.weighting.unmatched_rules(table.targets):
        yield f"the weighting rule {rule!r} names no weight of this checkpoint"


def _named(loras: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the output's header says about each LoRA."""
    kept = ("sha256", "strength_model", "strength_clip", "weighting")
    return [
        {"name": Path(record["file"]).name, **{key: record[key] for key in kept}}
        for record in loras
    ]


def _text(receipt: dict[str, Any]) -> Iterator[str]:
    output, seconds = Path(receipt["output"]), receipt["seconds"]
    yield (
        f"{output.name}: {receipt['tensors_changed']} of {receipt['tensors_total']} tensors "
        f"changed, {size_text(receipt['bytes'])} written in {seconds:.1f} s."
    )
    yield ""
    head = ("lora", "strength", "clip", "weighting", "tensors used")
    yield from text_table([head, *map(_cells, receipt["loras"])])
    for record in receipt["loras"]:
        name = Path(record["file"]).name
        for reason, count in _reasons(record["unused"]).items():
            yield f"  {name}: {count} tensors not used: {reason}"
        for note in record["notes"]:
            yield f"  {name}: {note}"


def _cells(record: dict[str, Any]) -> tuple[object, ...]:
    return (
        Path(record["file"]).name,
        f"{record['strength_model']:g}",
        f"{record['strength_clip']:g}",
        record["weighting"] or "-",
        f"{record['tensors_used']} of {record['tensors_total']}",
    )


def _reasons(unused: Sequence[dict[str, str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in unused:
        counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    return counts
