"""Settings to begin with, and why they are what they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A choice of settings.

    Attributes:
        purpose: What it is for.
        settings: Tables of a configuration that differ from the defaults.
        reasons: Name of a setting to why it has this value.
    """

    purpose: str
    settings: Mapping[str, Mapping[str, Any]]
    reasons: Mapping[str, str]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "style": Preset(
            "How pictures look: a painter's hand, a material, a palette. 20 pictures or more.",
            {
                "adapter": {"rank": 16, "alpha": 16.0},
                "optimizer": {"rate": 1e-4, "schedule": "cosine", "warmup_steps": 100},
                "objective": {"min_snr_gamma": 5.0},
                "run": {"steps": 2000, "batch_size": 2},
            },
            {
                "adapter.rank": "a style is few directions in every layer; more rank brings the "
                "pictures' subjects along",
                "optimizer.schedule": "the rate falls to 0, so that the last steps only refine",
                "objective.min_snr_gamma": "5 is the paper's (arXiv:2303.09556): little noise does "
                "not drown what much noise teaches of the composition",
                "adapter.text_encoder": "left alone: a style needs no new words",
            },
        ),
        "character": Preset(
            "One person, animal or thing, called by a word. 10 to 40 pictures.",
            {
                "adapter": {"rank": 32, "alpha": 16.0, "text_encoder": ["te & attn", "te & ff"]},
                "optimizer": {
                    "rate": 1e-4,
                    "text_encoder_rate": 5e-5,
                    "schedule": "cosine",
                    "warmup_steps": 100,
                },
                "objective": {"min_snr_gamma": 5.0},
                "run": {"steps": 1500, "batch_size": 1},
            },
            {
                "adapter.rank": "a face has more detail than a style",
                "adapter.alpha": "half of the preset's rank, so half of the effect at each step: a "
                "subject that is learnt slowly stays apart from its pictures' backgrounds",
                "adapter.text_encoder": "the word that calls the subject is learnt too, at half "
                "the rate: text encoders forget quickly",
            },
        ),
        "quick look": Preset(
            "Whether pictures and captions are good, in minutes.",
            {
                "adapter": {"rank": 8, "alpha": 8.0, "targets": ["attn"]},
                "optimizer": {"rate": 5e-4, "schedule": "constant_with_warmup", "warmup_steps": 10},
                "run": {"steps": 200, "batch_size": 1},
            },
            {
                "optimizer.rate": "five times the usual: rough, and quick",
                "adapter.targets": "attention alone is most of what a LoRA learns",
                "run.steps": "enough to see whether it goes the right way",
            },
        ),
    }
)


def merged(*layers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tables of settings, later ones over earlier ones key by key."""
    tables: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for table, values in layer.items():
            tables.setdefault(table, {}).update(values)
    return tables
