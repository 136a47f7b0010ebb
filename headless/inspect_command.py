"""``lora-workbench inspect``: what a LoRA file holds and which weights it would change."""

import argparse
import json
from pathlib import Path

from ..lora_core.errors import LoraError, UnknownChoiceError, UnsupportedFormatError
from ..lora_core.explain import UNKNOWN_BASE, Report, check_finite, explain
from ..lora_core.files.tensor_file import open_tensor_file
from ..lora_core.lora import Lora, load_lora
from ..lora_core.models import BASES, ModelTable, table_from_shapes
from .messages import write_error, write_text

HELP = "say what a LoRA file changes, tensor by tensor"
DESCRIPTION = """\
Say which weight of a base each tensor of a LoRA file changes, at which scale, or why none.

Every tensor is accounted for and every number is read once: damage, NaN and infinity are errors.
Reads .safetensors, .pt, .bin and folders saved by PEFT or diffusers; runs no code from a file."""
EPILOG = """\
examples:
  lora-workbench inspect add_detail.safetensors
  lora-workbench inspect add_detail.safetensors --base sdxl
  lora-workbench inspect add_detail.safetensors --base my_checkpoint.safetensors --json

exit codes: 0 the report was made; 2 the file cannot be read, or cannot be applied to the --base
that was asked for (the report is printed all the same)."""

_LATER = ("sd3", "flux")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("file", metavar="FILE", help="a LoRA file or a PEFT folder")
    parser.add_argument(
        "--base",
        metavar="BASE",
        help=f"one of {', '.join((*BASES, *_LATER))}, or a checkpoint file; "
        "by default the family that the file's names and shapes fit best",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    """Print the report; see ``EPILOG`` for the exit code."""
    table = _table_of(options.base)
    lora = load_lora(options.file)
    _refuse_other_files(lora)
    check_finite(lora)
    report = explain(lora, table, options.base)
    print(json.dumps(report.to_json(), indent=2) if options.json else report.to_text())
    error = _problem(report)
    if error is None:
        return 0
    if options.base is None:  # the report was asked for, and says what is wrong
        write_text(f"Fix: {error.fix}")
        return 0
    write_error(error)
    return 2


def _refuse_other_files(lora: Lora) -> None:
    if lora.modules or lora.problem:
        return
    names = list(lora.file.tensors)
    raise UnsupportedFormatError(
        f"{lora.name} is not a LoRA.",
        {"Tensors": len(names), "First": names[0] if names else "none"},
        "give a LoRA file; a checkpoint goes after --base.",
    )


def _problem(report: Report) -> LoraError | None:
    """Why the LoRA cannot be applied to its base; None when it can."""
    if report.verdict == UNKNOWN_BASE:
        fix = "add --base CHECKPOINT, the model that this file was made for."
        return LoraError(f"{report.lora.name} fits no known base.", fix=fix)
    if report.no_table is not None and report.base is not None:
        return _comes_later(report)
    try:
        report.binding.check()
    except LoraError as error:
        return error
    return None


def _comes_later(report: Report) -> LoraError:
    return UnsupportedFormatError(
        f"The base {report.base} comes in a later version.",
        {"Bases now": ", ".join(BASES)},
        "apply the LoRA inside ComfyUI, or use a later version.",
    )


def _table_of(base: str | None) -> ModelTable | None:
    """The table of a checkpoint file; None for a name, which ``explain`` looks up."""
    if base is None or base in (*BASES, *_LATER):
        return None
    if not Path(base).exists():
        raise UnknownChoiceError("base, and no file of this name,", base, (*BASES, *_LATER))
    tensors = open_tensor_file(base).tensors
    return table_from_shapes({name: info.shape for name, info in tensors.items()})
