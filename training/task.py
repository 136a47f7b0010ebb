"""What is to be trained, and where what comes of it lies."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from ..version import VERSION
from .config import Output, TrainConfig
from .dataset.data import Dataset
from .hashes import weights_hash
from .trainable import Trainable

_KEY_LETTERS = 16  # of a folder's name


@dataclass(frozen=True, eq=False)
class TrainingTask:
    """One run, before it begins.

    Attributes:
        model: Of a host.
        dataset: Of a scan.
        config: How.
        output: What to make of it.
        runs: Folder of all runs; this one's states and file lie in ``folder`` below it.
        cache: Folder of latents and conditions, shared by runs.
    """

    model: Trainable
    dataset: Dataset
    config: TrainConfig
    output: Output
    runs: Path
    cache: Path

    @cached_property
    def key(self) -> str:
        """Of everything that decides what is learnt; previews, checkpoints and output do not."""
        told = asdict(self.config)
        del told["preview"], told["checkpoint"]
        model, levels = self.model, self.model.levels
        parts = [
            VERSION,
            told,
            self.dataset.sha256,
            levels.prediction,
            weights_hash({"signal": levels.signal, "noise": levels.noise}),
            model.identity,
            model.autoencoder,
            model.text,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Of this run alone."""
        return self.runs / self.key[:_KEY_LETTERS]
