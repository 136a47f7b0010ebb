"""What selectors name in a model, and the factors that a weighting gives to each block of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from ..models.blocks import block_of, block_rank
from ..models.target import Target
from .selectors import NAMES
from .weighting import Weighting


@dataclass(frozen=True)
class ModelBlocks:
    """A model as a weighting sees it.

    Attributes:
        targets: Block (see ``block_of``) to its weights, in the model's order, ``BASE`` first.
        parts: Part or component to the number of weights that it names, those with none left out.
    """

    targets: Mapping[str, tuple[Target, ...]]
    parts: Mapping[str, int]


@dataclass(frozen=True)
class Factors:
    """The factors of one block's weights: smallest, mean over the weights, largest."""

    least: float
    mean: float
    most: float


def blocks_of_model(targets: Iterable[Target]) -> ModelBlocks:
    """Group the weights of a model by block, and count those of each part."""
    blocks: dict[str, list[Target]] = {}
    parts = {name: 0 for name in NAMES if name != "BASE"}
    for target in targets:
        blocks.setdefault(block_of(target), []).append(target)
        for name in parts:
            parts[name] += NAMES[name](target)
    return ModelBlocks(
        {name: tuple(blocks[name]) for name in sorted(blocks, key=block_rank)},
        {name: count for name, count in parts.items() if count},
    )


def factors_by_block(weighting: Weighting, blocks: ModelBlocks) -> dict[str, Factors]:
    """Give the factors that all rules together have in each block."""
    found = {}
    for name, targets in blocks.targets.items():
        factors = [weighting.factor(target) for target in targets]
        found[name] = Factors(min(factors), fmean(factors), max(factors))
    return found
