"""What the training nodes tell."""

from collections.abc import Sequence
from pathlib import Path

from ..training.dataset.data import Dataset
from ..training.dataset.problems import HINTS
from ..training.dataset.report import bucket_rows
from ..training.outcome import Outcome
from .report_form import IN_PART, OK, Bars, Report, Section

_SHOWN = 20


def dataset_report(dataset: Dataset) -> Report:
    """How many pictures there are, at which sizes, and what to look at."""
    spare = sum(sample.regularisation for sample in dataset.samples)
    facts = [
        ("pictures", str(len(dataset.samples) - spare)),
        ("shown in an epoch", str(dataset.picks_per_epoch)),
    ]
    if spare:
        facts.append(("regularisation", str(spare)))
    if dataset.validation:
        facts.append(("validation, never trained on", str(len(dataset.validation))))
    rows = bucket_rows(dataset)
    counts = tuple(("x".join(map(str, row.bucket)), float(row.picks)) for row in rows)
    highest = max((count for _, count in counts), default=0.0)
    sizes = Section("Sizes", bars=Bars(counts, highest, "pictures of an epoch by size"))
    problems = [
        Section(
            problem.kind,
            f"{len(problem.items)} · {HINTS[problem.kind]}",
            IN_PART,
            tuple((name, fact) if fact else ("", name) for name, fact in problem.items[:_SHOWN]),
            notes=_rest(len(problem.items)),
        )
        for problem in dataset.problems
    ]
    headline = "Training pictures" if problems else "Training pictures, no problems found"
    return Report(headline, tuple(facts), (sizes, *problems))


def settings_report(explanation: str, costs: tuple[tuple[str, str], ...]) -> Report:
    """Settings with their reasons, and what they cost beside the presets."""
    headline, *lines = explanation.splitlines()
    sections = [Section("Settings", facts=tuple(("", line.strip()) for line in lines))]
    if costs:
        note = "memory: of factors, gradients and optimizer, without activations"
        sections.append(Section("Costs on this model", facts=costs, notes=(note,)))
    return Report(headline, sections=tuple(sections))


def run_report(outcome: Outcome, path: Path, retrain: bool, notes: Sequence[str]) -> Report:
    """How a run went and where its file is."""
    losses, measured = outcome.history.losses, outcome.history.validation
    facts = [
        ("file", str(path)),
        ("steps", f"{outcome.steps}, {outcome.new_steps} of them now"),
        ("modules", str(len(outcome.lora.modules))),
    ]
    if losses:
        facts.append(("last loss", f"{losses[-1][1]:.4f}"))
    if measured:
        step, loss = min(measured, key=lambda pair: pair[1])
        facts.append(("best validation loss", f"{loss:.4f} at step {step}"))
    go_on = "turn retrain off and run again to go on" if retrain else "run again to go on"
    state = "trained" if outcome.is_complete else f"stopped early; {go_on}"
    level = OK if outcome.is_complete else IN_PART
    told = tuple(line for note in notes for line in note.splitlines())
    section = Section(path.name, state, level, tuple(facts))
    return Report("Training", sections=(section,), notes=(*told, *outcome.warnings))


def _rest(count: int) -> tuple[str, ...]:
    return (f"and {count - _SHOWN} more",) if count > _SHOWN else ()
