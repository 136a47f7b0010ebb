"""Everything a run is told, as plain data."""

from dataclasses import dataclass, field
from typing import Literal

Method = Literal["lora", "dora", "loha", "lokr", "oft"]
Start = Literal["zero", "pissa"]
Precision = Literal["fp32", "fp16", "bf16"]
Loss = Literal["mse", "huber", "smooth_l1"]
Form = Literal["kohya", "diffusers", "peft"]
Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]


@dataclass(frozen=True)
class TargetRule:
    """What some targets get instead of the run's values; a later rule wins over an earlier one.

    Attributes:
        select: Selectors as in a weighting, joined by ``&``: ``"IN04-08 & attn2"``, ``"te1"``.
        rank: Columns of the factors; 0 leaves the targets as they are, untrained.
        alpha: The scale is alpha / rank; None is the run's ratio of alpha to rank.
        rate: Learning rate; None is the run's.
    """

    select: str
    rank: int | None = None
    alpha: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained beside the frozen weights.

    Attributes:
        method: ``"lora"`` (arXiv:2106.09685) or ``"dora"`` (arXiv:2402.09353). With the extra
            ``[lycoris]`` also ``"loha"`` (arXiv:2108.06098), ``"lokr"`` (arXiv:2212.10650) or
            ``"oft"`` (arXiv:2306.07280).
        rank: Columns of the factors. OFT turns so many outputs together where they are a whole
            part of all and no more than the parts; else fewer, as LyCORIS splits them.
        alpha: The scale is alpha / rank; None is alpha = rank. OFT has none, nor has a LoKr of two
            full matrices.
        rslora: The scale is alpha / sqrt(rank) (arXiv:2312.03732); LoRA and DoRA alone.
        start: ``"zero"``: A random, B zero. ``"pissa"``: the largest singular vectors of the
            weight (arXiv:2404.02948).
        dropout: Share of a target's inputs that are zero in a step, 0 to below 1; of LoHa and LoKr
            the share of what they add to its outputs. OFT has none.
        factor: Of LoKr: the first matrix is at most so large on each side; -1 makes both alike.
        decompose_both: Of LoKr: the first matrix is a product of two factors too.
        full_matrix: Of LoKr: both matrices are full, whatever the rank.
        tucker: Of LoHa: convolutions have a core between their factors.
        constraint: Of OFT: how far all turns may go together, per output; 0 does not bound them.
        rescale: Of OFT: each output gets a factor too.
        targets: Selectors as in a weighting; a weight is trained when one of them names it. Each of
            yours must name one; of the default's, those count that the model has.
        text_encoder: Selectors of the text encoders' targets; empty trains the UNet alone.
        rules: Exceptions.
    """

    method: Method = "lora"
    rank: int = 16
    alpha: float | None = None
    rslora: bool = False
    start: Start = "zero"
    dropout: float = 0.0
    factor: int = -1
    decompose_both: bool = False
    full_matrix: bool = False
    tucker: bool = False
    constraint: float = 0.0
    rescale: bool = False
    targets: tuple[str, ...] = ("attn", "ff", "proj")
    text_encoder: tuple[str, ...] = ()
    rules: tuple[TargetRule, ...] = ()


@dataclass(frozen=True)
class OptimizerConfig:
    """How the factors move.

    Attributes:
        name: ``"adamw"``, ``"adam"``, ``"sgd"``, ``"adafactor"``, or one with a library of its own:
            ``"adamw8bit"``, ``"lion"``, ``"prodigy"``.
        rate: Learning rate. ``prodigy`` wants 1, which it scales itself; ``adafactor`` about 0.01,
            as it counts in parts of a factor's own size.
        text_encoder_rate: That of the text encoders; None is ``rate``.
        lora_plus: B's rate over A's (arXiv:2402.12354); 1 is plain LoRA. LoRA and DoRA alone.
        weight_decay: Of every optimiser but ``adam``.
        betas: Of every optimiser but ``adafactor``; ``sgd`` takes the first one as its momentum.
        epsilon: Of ``adamw``, ``adam`` and ``adamw8bit``.
        clip_norm: Largest norm of all gradients together; 0 does not clip.
        schedule: The rate over the optimiser steps, as diffusers names it.
        warmup_steps: Optimiser steps in which the rate rises from 0.
        cycles: Restarts of ``cosine_with_restarts``.
        power: Of ``polynomial``.
    """

    name: str = "adamw"
    rate: float = 1e-4
    text_encoder_rate: float | None = None
    lora_plus: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    cycles: int = 1
    power: float = 1.0


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the model is asked for.

    Attributes:
        loss: ``"mse"``, ``"huber"`` or ``"smooth_l1"``.
        huber_delta: Where huber's and smooth L1's parabola ends.
        min_snr_gamma: Weights of arXiv:2303.09556, section 3.4; 0 weighs all noise levels alike.
        noise_offset: Standard deviation of what a channel's noise is moved by as a whole.
        first_timestep: Least noise, counted from 0.
        last_timestep: Most noise; None is the model's last.
    """

    loss: Loss = "mse"
    huber_delta: float = 0.1
    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0
    first_timestep: int = 0
    last_timestep: int | None = None


@dataclass(frozen=True)
class ValidationConfig:
    """The loss on pictures that are not trained on, at fixed noise.

    Attributes:
        every: Optimiser steps between two measurements; 0 never measures.
        timesteps: Noise levels of each picture, evenly spread.
        patience: Measurements without a better loss after which the run ends, with the factors of
            its last step; 0 never ends it.
    """

    every: int = 0
    timesteps: int = 4
    patience: int = 0


@dataclass(frozen=True)
class PreviewConfig:
    """Pictures by the host's own sampler while training.

    Attributes:
        every: Optimiser steps between two; 0 makes none.
        prompts: One picture each.
        negative: The negative prompt.
        steps: Of the sampler.
        cfg: Guidance.
        sampler: As in KSampler.
        scheduler: As in KSampler.
        size: Width and height in pixels; None is the training resolution.
    """

    every: int = 0
    prompts: tuple[str, ...] = ()
    negative: str = ""
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class CheckpointConfig:
    """States of the run that it can go on from.

    Attributes:
        every: Optimiser steps between two; 0 keeps only that of the end.
        keep: How many of the latest stay on disk.
    """

    every: int = 100
    keep: int = 2


@dataclass(frozen=True)
class RunConfig:
    """How long, how much at once, how precise.

    Attributes:
        steps: Optimiser steps; 0 takes ``epochs``.
        epochs: Passes over the pictures, used when ``steps`` is 0.
        batch_size: Pictures of a batch, over all processes together.
        accumulation: Batches of one optimiser step.
        precision: Of the forward pass; the factors are always float32.
        gradient_checkpointing: How deep blocks are computed twice instead of kept: 0 keeps all,
            1 the whole blocks of the model's lists, 2 the blocks within these, and so on. On SD 1.5
            and SDXL 3 keeps what diffusers' own checkpointing keeps, 1 keeps least.
        ema: Decay of the average of the factors that is saved; 0 saves the factors.
        seed: Of everything random.
    """

    steps: int = 1000
    epochs: int = 0
    batch_size: int = 1
    accumulation: int = 1
    precision: Precision = "fp32"
    gradient_checkpointing: int = 0
    ema: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """One run."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    run: RunConfig = field(default_factory=RunConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


@dataclass(frozen=True)
class Output:
    """What a finished run's file is.

    Attributes:
        name: Of the LoRA, without ending.
        form: ``"kohya"``, ``"diffusers"`` or ``"peft"``, which is a folder.
        dtype: Of the factors in it.
        trigger_phrase: Words that call the LoRA.
        author: Who trained it.
        license: Of the LoRA.
    """

    name: str = "lora"
    form: Form = "kohya"
    dtype: Precision = "fp16"
    trigger_phrase: str = ""
    author: str = ""
    license: str = ""
