"""What a configuration file says: the run, its base, its pictures and its output."""

from dataclasses import dataclass, field
from typing import Literal

from .config import (
    AdapterConfig,
    CheckpointConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Output,
    PreviewConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from .dataset.settings import DatasetSettings


@dataclass(frozen=True)
class ModelConfig:
    """The base.

    Attributes:
        checkpoint: A .safetensors file, or a folder in diffusers' form; a relative path is taken
            from the configuration's folder.
        dtype: Of its weights in memory.
        device: ``"auto"`` takes an accelerator where there is one.
        clip_skip: The layer of the text encoders that is read, -1 for the last, as
            CLIPSetLastLayer counts; None is the family's own.
    """

    checkpoint: str
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    device: str = "auto"
    clip_skip: int | None = None


@dataclass(frozen=True)
class FileConfig:
    """All tables of a configuration file."""

    model: ModelConfig
    dataset: DatasetSettings
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    run: RunConfig = field(default_factory=RunConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    output: Output = field(default_factory=Output)

    @property
    def training(self) -> TrainConfig:
        """The part that the trainer reads."""
        return TrainConfig(
            self.adapter,
            self.optimizer,
            self.objective,
            self.run,
            self.validation,
            self.preview,
            self.checkpoint,
        )
