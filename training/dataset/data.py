"""What a scan finds, as plain data."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from .buckets import Fit
from .settings import NOT_CONTENT, DatasetSettings, Size


@dataclass(frozen=True)
class Sample:
    """One picture and what is trained of it.

    Attributes:
        path: Of the file.
        name: Relative to its dataset's folder, with ``/``; those of other folders begin with
            ``regularisation/`` or ``validation/``.
        group: Name of the folder that it lies in.
        sha256: Of the file's bytes.
        size: Width and height as it is seen, turned by its EXIF data.
        caption: As written or by default, on one line.
        repeats: How often it is shown in an epoch.
        fit: Its bucket and the resize and cut that lead there.
        regularisation: Whether it is there so that the model does not forget.
        weight: Of its loss.
        mask: File of the mask, or the picture itself for its opacity, or None.
        mask_sha256: Of the mask's bytes, or empty.
    """

    path: Path
    name: str
    group: str
    sha256: str
    size: Size
    caption: str
    repeats: int
    fit: Fit
    regularisation: bool = False
    weight: float = 1.0
    mask: Path | None = None
    mask_sha256: str = ""


@dataclass(frozen=True)
class Problem:
    """Something to look at; training is possible all the same.

    Attributes:
        kind: A key of ``problems.HINTS``.
        items: A name and what was found there, each.
    """

    kind: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Dataset:
    """All pictures of a dataset in the order of their names.

    Attributes:
        settings: What it was made with.
        samples: Training pictures, then regularisation.
        validation: Pictures that are never trained on.
        problems: One of a kind.
    """

    settings: DatasetSettings
    samples: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    problems: tuple[Problem, ...]

    @cached_property
    def sha256(self) -> str:
        """Changes with everything that training sees, and not with where the folders lie."""
        options = {k: v for k, v in asdict(self.settings).items() if k not in NOT_CONTENT}
        options["resolution"] = self.settings.target
        parts = [options, _content(self.samples), _content(self.validation)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def picks_per_epoch(self) -> int:
        """Pictures that an epoch shows, repeats counted."""
        return sum(sample.repeats for sample in self.samples)


def _content(samples: Iterable[Sample]) -> list[dict[str, object]]:
    """Without where the files lie; names below the folder stay, for they decide the order."""
    return [{**asdict(sample), "path": "", "mask": "", "group": ""} for sample in samples]
