"""Which mask belongs to which picture."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...lora_core.errors import LoraError
from .data import Sample
from .listing import list_files, stem
from .look import Look, look_at_all
from .problems import Finding, shown_size

_SHAPE_TOLERANCE = 0.02  # of width over height


def by_opacity(sample: Sample, look: Look) -> Sample:
    """The picture is its own mask if it can hold transparent pixels."""
    if not look.transparent:
        return sample
    return replace(sample, mask=sample.path, mask_sha256=sample.sha256)


def from_folder(
    samples: Sequence[Sample], names: Sequence[str], folder: Path, findings: list[Finding]
) -> list[Sample]:
    """Masks of the same relative names, whatever their endings.

    Args:
        samples: Pictures.
        names: Of them, relative to their own folder.
        folder: Of the masks.
        findings: Gets masks of another shape than their picture's.

    Raises:
        LoraError: the folder is missing, or a mask cannot be read.
    """
    listed = list_files(folder, ".txt", option="mask_folder")
    files = {stem(entry.name): entry.path for entry in listed.entries}
    found = [files.get(stem(name)) for name in names]
    looks = iter(look_at_all([path for path in found if path]))
    masked = []
    for sample, path in zip(samples, found, strict=True):
        if path:
            look = next(looks)
            if look.trouble:
                raise LoraError(
                    "A mask cannot be read.",
                    {"mask": path, "reason": look.trouble},
                    "replace the file, or delete it to train the whole picture.",
                )
            findings += _misshapen(sample, look)
            sample = replace(sample, mask=path, mask_sha256=look.sha256)
        masked.append(sample)
    return masked


def _misshapen(sample: Sample, look: Look) -> Iterator[Finding]:
    (width, height), (mask_width, mask_height) = sample.size, look.size
    if abs(width * mask_height / (height * mask_width) - 1) > _SHAPE_TOLERANCE:
        fact = f"{shown_size(look.size)} for {shown_size(sample.size)}"
        yield Finding("mask of another shape", sample.name, fact)
