"""How strongly each block or part of a LoRA counts: `selector=factor` rules."""

from .overview import Factors, ModelBlocks, blocks_of_model, factors_by_block
from .weighting import Weighting

__all__ = ["Factors", "ModelBlocks", "Weighting", "blocks_of_model", "factors_by_block"]
