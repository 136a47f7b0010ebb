"""How strongly each block or part of a LoRA counts: `selector=factor` rules."""

from .weighting import Weighting

__all__ = ["Weighting"]
