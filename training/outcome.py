"""What a run leaves: a file, and the receipt of a run that came to its end."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..lora_core.errors import FailedError
from ..lora_core.lora import Lora, load_lora
from .config import Output
from .export import Trained, export
from .loop import History, Trainer
from .metadata_facts import training_facts
from .task import TrainingTask

_RECEIPT = "receipt.json"
_MEASURED = ("losses", "validation")


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        path: The file in the run's folder.
        lora: Its content.
        history: What was measured.
        steps: Optimiser steps done in all, and
        new_steps: in this call.
        is_complete: Whether the run came to its end.
        warnings: What a user may not expect of the file.
    """

    path: Path
    lora: Lora
    history: History
    steps: int
    new_steps: int
    is_complete: bool
    warnings: tuple[str, ...]


def finished(task: TrainingTask) -> Outcome | None:
    """What a run left that came to its end; None where something of it was lost or changed."""
    try:
        told = json.loads((task.folder / _RECEIPT).read_text(encoding="utf-8"))
        path = task.folder / told["file"]
        is_same = told["key"] == task.key and told["output"] == asdict(task.output)
        if not is_same or told["files"] != _hashes(path):
            return None
        history = History(**{name: [tuple(pair) for pair in told[name]] for name in _MEASURED})
        return Outcome(
            path, load_lora(path), history, told["steps"], 0, True, tuple(told["warnings"])
        )
    except (OSError, ValueError, KeyError):
        return None  # the last state makes it again


def forget_receipt(task: TrainingTask) -> None:
    """The run has not come to its end.

    Raises:
        OSError: the receipt cannot be deleted.
    """
    (task.folder / _RECEIPT).unlink(missing_ok=True)


def written(task: TrainingTask, trainer: Trainer, before: int) -> Outcome:
    """Write the file of a run that came to its end or was stopped; all processes wait for it.

    Args:
        task: The run's.
        trainer: After its last step.
        before: Steps that had been done before this call.

    Raises:
        FailedError: the disk is full or cannot be written; the states are kept.
    """
    path = task.folder / _file_name(task.output, None if trainer.is_complete else trainer.step)
    warnings: tuple[str, ...] = ()
    if trainer.processes.is_first:
        targets = [each.trained for each in trainer.factors]
        try:
            with trainer.averaged():  # what is learnt is read where it lies
                modules = [each.learnt() for each in trainer.factors]
                facts = training_facts(task, targets, modules, trainer.step, trainer.steps)
                warnings = _export(modules, task, trainer, path, facts)
        except OSError as error:
            raise FailedError(
                "The LoRA cannot be written.",
                {"Cause": error.strerror or error, "Folder": path.parent},
                "make room on the disk and run the same again (without retrain); no step is "
                "done anew.",
            ) from error
    trainer.processes.wait()
    new, is_complete = trainer.step - before, trainer.is_complete
    return Outcome(path, load_lora(path), trainer.history, trainer.step, new, is_complete, warnings)


def _file_name(output: Output, step: int | None) -> str:
    """In a run's folder; PEFT's form is a folder itself."""
    ending = "" if output.form == "peft" else ".safetensors"
    return f"lora{ending}" if step is None else f"lora-step-{step:08}{ending}"


def _hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of each in PEFT's folder, by name."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _export(
    modules: Sequence[Trained],
    task: TrainingTask,
    trainer: Trainer,
    path: Path,
    facts: Mapping[str, str],
) -> tuple[str, ...]:
    """Write the file; a finished run gets its receipt last of all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table, output = task.model.table, task.output
    found = export(modules, table, path, output.form, output.dtype, facts, overwrite=True)
    if trainer.is_complete:
        told = {
            "key": task.key,
            "output": asdict(output),
            "file": path.name,
            "files": _hashes(path),
            "steps": trainer.step,
            **asdict(trainer.history),
            "warnings": list(found.warnings),
        }
        draft = path.with_name(f"{_RECEIPT}.new")
        draft.write_text(json.dumps(told, indent=1), encoding="utf-8")
        draft.replace(path.with_name(_RECEIPT))
    return found.warnings
