"""What trainers write about a LoRA into its header."""

import json
from collections import Counter
from collections.abc import Mapping

_SUMMARY = {
    "title": ("modelspec.title", "ss_output_name", "name"),
    "author": ("modelspec.author",),
    "architecture": ("modelspec.architecture", "ss_base_model_version"),
    "trained on": ("ss_sd_model_name",),
    "network": ("ss_network_module",),
    "rank": ("ss_network_dim",),
    "alpha": ("ss_network_alpha",),
    "resolution": ("modelspec.resolution", "ss_resolution"),
    "steps": ("ss_steps", "ss_max_train_steps"),
    "epochs": ("ss_epoch", "ss_num_epochs"),
    "licence": ("modelspec.license",),
}
_PHRASES = ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_words")
_TAG_COUNTS = "ss_tag_frequency"


def summarize(metadata: Mapping[str, str]) -> dict[str, str]:
    """Pick the entries a user asks for; what the header says, not what the tensors show."""
    found = {
        name: next((metadata[key] for key in keys if metadata.get(key)), "")
        for name, keys in _SUMMARY.items()
    }
    return {name: value for name, value in found.items() if value and value != "None"}


def trigger_words(metadata: Mapping[str, str], limit: int = 10) -> tuple[str, ...]:
    """Words the LoRA was trained on: the author's phrase, else the most frequent caption tags.

    Args:
        metadata: String pairs of a header.
        limit: Most tags to return.
    """
    phrase = trigger_phrase(metadata)
    if phrase:
        return (phrase,)
    return tuple(tag for tag, _ in tag_counts(metadata).most_common(limit))


def trigger_phrase(metadata: Mapping[str, str]) -> str:
    """What the author says calls the LoRA; empty when nothing is said."""
    return next((metadata[key].strip() for key in _PHRASES if metadata.get(key)), "")


def tag_counts(metadata: Mapping[str, str]) -> Counter[str]:
    """Caption tags of the training data, ``{folder: {tag: count}}`` summed over the folders.

    What has another form counts nothing.
    """
    text = metadata.get(_TAG_COUNTS, "")
    try:
        folders = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return Counter()
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and tag.strip():
                counts[tag.strip()] += count
    return counts
