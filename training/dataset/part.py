"""One folder's pictures with captions, buckets and masks."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...lora_core.errors import LoraError
from .buckets import bucket_sizes, fit
from .caption_files import read_captions
from .data import Sample
from .listing import Entry, Listing, list_files, stem
from .look import Look, Progress, look_at_all
from .masks import by_opacity, from_folder
from .problems import Finding
from .settings import DatasetSettings

Role = Literal["training", "validation", "regularisation"]
_SHOWN = 5
_OPTIONS: Mapping[Role, str] = {
    "training": "folder",
    "validation": "validation_folder",
    "regularisation": "regularisation",
}


@dataclass(frozen=True)
class Part:
    """What was found in a folder.

    Attributes:
        samples: By name.
        looks: By the samples' names.
        findings: What is remarkable.
    """

    samples: list[Sample]
    looks: dict[str, Look]
    findings: list[Finding]


def scan_folder(
    folder: Path,
    role: Role,
    settings: DatasetSettings,
    without: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Part:
    """Look at all pictures of a folder.

    Args:
        folder: With the pictures in it and below.
        role: What they are for.
        settings: Of the dataset.
        without: Folders inside it that are something else.
        progress: Is told how many pictures are done.

    Raises:
        LoraError: the folder is missing or holds no picture that can be read, captions are not
            UTF-8, or a mask cannot be read.
    """
    listing = list_files(folder, settings.caption_extension, without, _OPTIONS[role])
    all_looks = look_at_all([entry.path for entry in listing.entries], progress)
    findings = list(_unused(listing, all_looks))
    used = [
        (entry, look)
        for entry, look in zip(listing.entries, all_looks, strict=True)
        if entry.repeats and not look.trouble
    ]
    _require_any(used, {_OPTIONS[role]: folder}, listing, findings)
    entries, looks = [entry for entry, _ in used], [look for _, look in used]
    captions = _captions(folder, listing, entries, role, settings, findings)
    samples = _samples(used, captions, role, settings)
    if role != "regularisation":
        samples = _masked(samples, entries, looks, settings, findings)
    # Names of findings are relative to this folder up to here, except those of samples.
    own = {sample.name for sample in samples}
    marked = [
        finding if finding.name in own else finding._replace(name=_name(finding.name, role))
        for finding in findings
    ]
    by_name = {sample.name: look for sample, look in zip(samples, looks, strict=True)}
    return Part(samples, by_name, marked)


def _name(relative: str, role: Role) -> str:
    return relative if role == "training" else f"{role}/{relative}"


def _samples(
    used: Sequence[tuple[Entry, Look]],
    captions: Sequence[str],
    role: Role,
    settings: DatasetSettings,
) -> list[Sample]:
    buckets = bucket_sizes(settings)
    spare = role == "regularisation"
    return [
        Sample(
            path=entry.path,
            name=_name(entry.name, role),
            group=entry.group,
            sha256=look.sha256,
            size=look.size,
            caption=caption,
            repeats=entry.repeats * (settings.repeats if role == "training" else 1),
            fit=fit(look.size, buckets, settings),
            regularisation=spare,
            weight=settings.regularisation_weight if spare else 1.0,
        )
        for (entry, look), caption in zip(used, captions, strict=True)
    ]


def _unused(listing: Listing, looks: Sequence[Look]) -> Iterator[Finding]:
    for entry, look in zip(listing.entries, looks, strict=True):
        if look.trouble:
            yield Finding("unreadable picture", entry.name, look.trouble)
        elif not entry.repeats:
            yield Finding("shown 0 times", entry.name, f"folder {entry.group}")
    stems = {stem(entry.name) for entry in listing.entries}
    for name in listing.captions:
        if stem(name) not in stems:
            yield Finding("caption without a picture", name)
    for name in listing.others:
        yield Finding("other file", name)


def _require_any(
    used: Sequence[object],
    place: Mapping[str, Path],
    listing: Listing,
    findings: Sequence[Finding],
) -> None:
    if used:
        return
    troubles = [f for f in findings if f.kind in ("unreadable picture", "shown 0 times")]
    raise LoraError(
        "The folder holds no picture that can be used.",
        {
            **place,
            "pictures": len(listing.entries),
            "other files": len(listing.captions) + len(listing.others),
            **{f.name: f.fact for f in troubles[:_SHOWN]},
        },
        "choose a folder with PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF files in it or below.",
    )


def _captions(
    folder: Path,
    listing: Listing,
    entries: Sequence[Entry],
    role: Role,
    settings: DatasetSettings,
    findings: list[Finding],
) -> list[str]:
    """A caption for each picture, from its file or by default."""
    files = {stem(name): name for name in listing.captions}
    wanted = sorted({stem(entry.name) for entry in entries} & files.keys())
    texts = dict(zip(wanted, read_captions([folder / files[s] for s in wanted]), strict=True))
    sharing = defaultdict(list)
    captions = []
    for entry in entries:
        at = stem(entry.name)
        if at in texts:
            text, remark = texts[at]
            sharing[at].append(entry.name)
            if remark:
                findings.append(Finding("caption rewritten", files[at], remark))
            if not text:
                findings.append(Finding("empty caption", entry.name))
        else:
            text = _default(entry, role, settings)
            findings.append(Finding("no caption file", entry.name, text or "no words"))
        captions.append(text)
    for at, names in sharing.items():
        if len(names) > 1:
            findings.append(Finding("shared caption", files[at], ", ".join(names)))
    return captions


def _default(entry: Entry, role: Role, settings: DatasetSettings) -> str:
    if role == "regularisation":
        return settings.regularisation_caption or entry.words
    return settings.default_caption or entry.words


def _masked(
    samples: list[Sample],
    entries: Sequence[Entry],
    looks: Sequence[Look],
    settings: DatasetSettings,
    findings: list[Finding],
) -> list[Sample]:
    if settings.masks == "none":
        return samples
    if settings.masks == "alpha":
        masked = [by_opacity(sample, look) for sample, look in zip(samples, looks, strict=True)]
    else:
        folder = Path(settings.mask_folder).expanduser().resolve()
        masked = from_folder(samples, [entry.name for entry in entries], folder, findings)
    findings += [Finding("no mask", sample.name) for sample in masked if not sample.mask]
    return masked
