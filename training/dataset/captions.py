"""The words that a picture is shown with."""

import torch

from ..randomness import generator
from .data import Sample
from .settings import DatasetSettings


def as_prompt(caption: str) -> str:
    """A prompt that means a caption's own words: its brackets are letters and no weights."""
    return caption.replace("(", "\\(").replace(")", "\\)")


def caption_of(
    sample: Sample, settings: DatasetSettings, seed: int, epoch: int, repeat: int
) -> str:
    """The caption for one showing of a picture.

    In this order: the whole caption is dropped (trigger words too), or tags are dropped, the rest
    is shuffled, prefix and suffix are added. The first ``keep_tags`` tags are neither dropped nor
    moved.

    Args:
        sample: The picture.
        settings: Of its dataset.
        seed: Of the run.
        epoch: From 0.
        repeat: Which of its showings in the epoch, from 0.
    """
    source = generator(seed, "caption", sample.name, epoch, repeat)
    # Always drawn, so that one option changes nothing in what another one draws.
    is_dropped = _uniform(source) < settings.caption_dropout
    if is_dropped:
        return ""
    caption = sample.caption
    if settings.shuffle_tags or settings.tag_dropout:
        tags = tags_of(caption, settings)
        kept, rest = tags[: settings.keep_tags], tags[settings.keep_tags :]
        draws = torch.rand(len(rest), generator=source).tolist()
        order = torch.randperm(len(rest), generator=source).tolist()
        places = order if settings.shuffle_tags else range(len(rest))
        kept += [rest[place] for place in places if draws[place] >= settings.tag_dropout]
        caption = _joined(kept, settings)
    return _worded(sample, caption, settings)


def plain_caption(sample: Sample, settings: DatasetSettings) -> str:
    """The caption as written, with prefix and suffix: for validation."""
    return _worded(sample, sample.caption, settings)


def captions_vary(settings: DatasetSettings) -> bool:
    """Whether a picture has ever new captions, for which a cache of their embeddings is no use.

    Dropping whole captions alone adds one text, the empty one.
    """
    return settings.shuffle_tags or settings.tag_dropout > 0


def tags_of(caption: str, settings: DatasetSettings) -> list[str]:
    """The tags of a caption in their order, without empty ones."""
    tags = (tag.strip() for tag in caption.split(settings.tag_separator.strip()))
    return [tag for tag in tags if tag]


def _joined(tags: list[str], settings: DatasetSettings) -> str:
    mark = settings.tag_separator.strip()
    return f"{mark} ".join(tags)


def _worded(sample: Sample, caption: str, settings: DatasetSettings) -> str:
    if sample.regularisation:
        return caption
    parts = (settings.prefix.strip(), caption, settings.suffix.strip())
    return " ".join(part for part in parts if part)


def _uniform(source: torch.Generator) -> float:
    return float(torch.rand((), generator=source))
