"""From folders to a dataset."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...lora_core.errors import LoraError
from ..randomness import seed_of
from .data import Dataset, Sample
from .look import Progress
from .part import scan_folder
from .problems import Finding, collect, duplicates, of_samples
from .settings import DatasetSettings, check

_LARGEST_SEED = 2**63
_ROOM = 8  # pixels that a random crop must be able to move to be one


def scan(settings: DatasetSettings, progress: Progress | None = None) -> Dataset:
    """Look at every file of a dataset.

    Each picture is read once and decoded once (JPEGs at an eighth of their size). Files that
    cannot be used are listed among the problems and left out.

    Args:
        settings: Checked first.
        progress: Is told how many pictures are done and of how many, for each folder anew.

    Raises:
        LoraError: a setting is wrong, a folder is missing or without pictures, captions are not
            UTF-8, or validation takes all pictures.
    """
    check(settings)
    kept_apart = [
        _resolved(folder)
        for folder in (settings.regularisation, settings.mask_folder, settings.validation_folder)
        if folder
    ]
    folder = _resolved(settings.folder)
    parts = [scan_folder(folder, "training", settings, kept_apart, progress)]
    training, validation, findings = _split(parts[0].samples, settings)
    if settings.validation_folder:
        held_out = _resolved(settings.validation_folder)
        parts.append(scan_folder(held_out, "validation", settings, (), progress))
        validation = parts[-1].samples
        findings += _in_both(training, validation)
    if settings.regularisation:
        spare = _resolved(settings.regularisation)
        parts.append(scan_folder(spare, "regularisation", settings, (), progress))
        training = training + balanced(parts[-1].samples, sum(s.repeats for s in training))
    looks = {name: look for part in parts for name, look in part.looks.items()}
    every = [*training, *validation]
    findings += [finding for part in parts for finding in part.findings]
    findings += of_samples(every, looks, settings.enlarged_note)
    findings += duplicates(every, looks)
    findings += _without_room(training, settings)
    return Dataset(settings, tuple(training), tuple(validation), collect(findings))


def balanced(samples: Sequence[Sample], wanted: int) -> list[Sample]:
    """Raise the repeats of regularisation pictures until an epoch shows ``wanted`` of them.

    Those by the folders' names are kept where they are more, so that no picture is left out; what
    is missing is dealt out in rounds, as in kohya's tools.
    """
    missing = max(wanted - sum(sample.repeats for sample in samples), 0)
    rounds, rest = divmod(missing, len(samples))
    return [
        replace(sample, repeats=sample.repeats + rounds + (number < rest))
        for number, sample in enumerate(samples)
    ]


def _resolved(folder: str) -> Path:
    return Path(folder).expanduser().resolve()


def _split(
    samples: Sequence[Sample], settings: DatasetSettings
) -> tuple[list[Sample], list[Sample], list[Finding]]:
    """Training and validation; equal files are on the same side."""
    if not settings.validation:
        return list(samples), [], []

    def place(sample: Sample) -> int:
        return seed_of(settings.validation_seed, "validation", sample.sha256)

    limit = settings.validation * _LARGEST_SEED
    findings = []
    if all(place(sample) >= limit for sample in samples):
        limit = min(map(place, samples)) + 1
        findings.append(Finding("validation share", f"{settings.validation:g}", "of the pictures"))
    held_out = [sample for sample in samples if place(sample) < limit]
    training = [sample for sample in samples if place(sample) >= limit]
    if not training:
        raise LoraError(
            "All pictures are held out for validation.",
            {"pictures": len(samples), "validation": settings.validation},
            "take a smaller share, more pictures, or another validation_seed.",
        )
    return training, [replace(sample, repeats=1) for sample in held_out], findings


def _in_both(training: Sequence[Sample], validation: Sequence[Sample]) -> Iterator[Finding]:
    names = {sample.sha256: sample.name for sample in training}
    for sample in validation:
        if sample.sha256 in names:
            fact = f"equals {names[sample.sha256]}"
            yield Finding("in training and validation", sample.name, fact)


def _without_room(samples: Sequence[Sample], settings: DatasetSettings) -> Iterator[Finding]:
    if settings.crop == "random" and all(max(s.fit.room) < _ROOM for s in samples):
        yield Finding("random crop", "all pictures", f"less than {_ROOM} pixels of room")
