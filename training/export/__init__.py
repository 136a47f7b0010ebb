"""Trained LoRAs as files that every program reads alike."""

from .from_peft import trained_modules
from .lycoris import TrainedLycoris
from .metadata import TrainingFacts, metadata
from .tensors import DTYPES, FORMS, Form, exported_tensors, named_modules
from .trained import Trained, TrainedModule
from .verify import BOUNDS
from .write import Exported, export

__all__ = [
    "BOUNDS",
    "DTYPES",
    "FORMS",
    "Exported",
    "Form",
    "Trained",
    "TrainedLycoris",
    "TrainedModule",
    "TrainingFacts",
    "export",
    "exported_tensors",
    "metadata",
    "named_modules",
    "trained_modules",
]
