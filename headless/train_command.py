"""``lora-workbench train``: a LoRA from a folder of pictures, without ComfyUI."""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lora_core.errors import LoraError
from ..lora_core.explain import printable
from .messages import write_text
from .run_embedded import missing_libraries
from .train_keys import example_config, key_table
from .user_folder import user_folder

if TYPE_CHECKING:
    from ..training.outcome import Outcome

HELP = "train a LoRA on pictures with captions"
DESCRIPTION = """\
Train a LoRA on a folder of pictures and their captions, as a TOML file says.

The same file, pictures and base never train twice: a finished run gives its LoRA at once, an
interrupted one goes on where it stopped, with the same bits as if it never had. Ctrl-C stops after
the current step and writes what was learnt; a second one ends the run at once, and its last state
is kept."""
EPILOG = """\
examples:
  lora-workbench train --example > cat.toml      every key with its default and what it means
  lora-workbench train cat.toml -o cat.safetensors
  accelerate launch --num_processes 2 -m lora_workbench.headless.cli train cat.toml
                                                 on two GPUs, with run.batch_size 2 or more

exit codes: 0 the LoRA is trained and written; 1 stopped before its end, or failed while running;
2 the input is wrong."""

_FILES_OF_PEFT = {"adapter_config.json", "adapter_model.safetensors"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("config", metavar="CONFIG", nargs="?", type=Path, help="a TOML file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="the .safetensors to write"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    parser.add_argument("--retrain", action="store_true", help="forget what the same run has done")
    parser.add_argument(
        "--runs",
        metavar="FOLDER",
        type=Path,
        help="where states of runs, latents and previews are kept; default the user's cache",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--check", action="store_true", help="look at everything, train nothing")
    instead.add_argument("--example", action="store_true", help="print a file with every key")
    instead.add_argument("--keys", action="store_true", help="print a table of every key")
    parser.add_argument(
        "--json", action="store_true", help="print the receipt, or what --check found, as JSON"
    )


def run(options: argparse.Namespace) -> int:
    """Train, then print the receipt."""
    if options.example or options.keys:
        print(example_config() if options.example else key_table())
        return 0
    if options.config is None:
        raise LoraError("There is no configuration.", fix="name a TOML file; --example prints one.")
    require_libraries()
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from .train_run import checked_config, checked_run, looked_at, trained

    config = checked_config(options.config)
    output = _output(options, config.output.form == "peft")
    prepared = checked_run(config, options.runs or user_folder() / "training")
    if options.check:
        text, facts = looked_at(prepared)
        if prepared.is_first_process:
            shown = "\n".join(map(printable, text.splitlines()))
            print(json.dumps(facts, indent=2) if options.json else shown)
        return 0
    try:
        outcome = trained(prepared, options.retrain)
    except KeyboardInterrupt:
        write_text(f"Interrupted. The last state is kept: {_again(options)} goes on from it.")
        return 1
    if not prepared.is_first_process:
        return 0
    written = _written(outcome, output)
    receipt = _receipt(outcome, written)
    print(json.dumps(receipt, indent=2) if options.json else _text(receipt, _again(options)))
    return 0 if outcome.is_complete else 1


def require_libraries() -> None:
    """Refuse to train where something is missing."""
    import importlib.util

    missing = missing_libraries()
    missing += [name for name in ("peft", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise LoraError(
            "Training needs libraries that are not installed.",
            {"Missing": ", ".join(missing)},
            'pip install "comfyui-lora-workbench[train]"',
        )


def _output(options: argparse.Namespace, is_folder: bool) -> Path | None:
    output: Path | None = options.output
    if output is None:
        return None
    if output.suffix != ".safetensors" and not is_folder:
        raise LoraError(
            f"{output.name}: a LoRA is written as .safetensors.",
            {"Path": output},
            f"use {output.stem + '.safetensors'!r}.",
        )
    if is_folder and output.suffix:
        raise LoraError(
            f"{output.name}: PEFT's form is a folder.", {"Path": output}, f"use {output.stem!r}."
        )
    if output.exists() and not options.force:
        raise LoraError(f"{output.name} exists.", {"Path": output}, "name another, or add --force.")
    if output.exists() and output.is_dir() != is_folder:
        kinds = ("a folder", "a file") if is_folder else ("a file", "a folder")
        raise LoraError(
            f"{output.name} would be {kinds[0]}, and there is {kinds[1]}.",
            {"Path": output},
            "name another.",
        )
    if is_folder:
        _refuse_other_files(output)
    if not output.parent.is_dir():
        raise LoraError("The output's folder does not exist.", {"Path": output}, "make it first.")
    _refuse_unwritable(output.parent)
    return output


def _refuse_other_files(folder: Path) -> None:
    """Before a folder is replaced as a whole."""
    others = sorted({path.name for path in folder.glob("*")} - _FILES_OF_PEFT)
    if others:
        raise LoraError(
            f"{folder.name} holds more than a LoRA in PEFT's form.",
            {"Folder": folder, "Other files": ", ".join(others[:5])},
            "name another folder.",
        )


def _refuse_unwritable(folder: Path) -> None:
    """Before hours of training."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise LoraError(
            "The output's folder cannot be written.",
            {"Cause": error.strerror or error, "Folder": folder},
            "name a file in another folder.",
        ) from error


def _written(outcome: "Outcome", output: Path | None) -> Path:
    """The LoRA under the name that was asked for, whole or not at all."""
    if output is None:
        return outcome.path
    if not outcome.steps:
        return outcome.path  # nothing is learnt yet
    if not outcome.is_complete:
        steps = f"{output.stem}-step-{outcome.steps:08}{output.suffix}"
        output = output.with_name(steps)
    if outcome.path.is_dir():
        _refuse_other_files(output)
        with tempfile.TemporaryDirectory(prefix=".lora-workbench-", dir=output.parent) as scratch:
            shutil.copytree(outcome.path, Path(scratch) / "new")
            if output.exists():
                output.rename(Path(scratch) / "old")
            (Path(scratch) / "new").rename(output)
        return output
    draft = output.with_name(f".{output.name}.new")
    try:
        shutil.copyfile(outcome.path, draft)
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
    return output


def _receipt(outcome: "Outcome", path: Path) -> dict[str, Any]:
    losses = outcome.history.losses
    best = min(outcome.history.validation, key=lambda pair: pair[1], default=(None, None))
    return {
        "file": str(path),
        "sha256": outcome.lora.sha256,
        "modules": len(outcome.lora.modules),
        "steps": outcome.steps,
        "new_steps": outcome.new_steps,
        "is_complete": outcome.is_complete,
        "last_loss": losses[-1][1] if losses else None,
        "best_validation_loss": best[1],
        "best_validation_step": best[0],
        "run_folder": str(outcome.path.parent),
        "warnings": list(outcome.warnings),
    }


def _again(options: argparse.Namespace) -> str:
    return "the same command" + (" without --retrain" if options.retrain else "")


def _text(receipt: dict[str, Any], again: str) -> str:
    done = "trained" if receipt["is_complete"] else f"stopped; {again} goes on"
    lines = [
        f"{receipt['file']}",
        f"  {done}: {receipt['steps']} steps, {receipt['new_steps']} of them now",
        f"  modules: {receipt['modules']}",
    ]
    if receipt["last_loss"] is not None:
        lines.append(f"  last loss: {receipt['last_loss']:.4f}")
    if receipt["best_validation_loss"] is not None:
        best = f"{receipt['best_validation_loss']:.4f} at step {receipt['best_validation_step']}"
        lines.append(f"  best validation loss: {best}; the file is of step {receipt['steps']}")
    lines.append(f"  its states and previews: {receipt['run_folder']}")
    return "\n".join([*lines, *(f"  {warning}" for warning in receipt["warnings"])])
