"""Checkpoint files and diffusers folders, loaded without a network into diffusers modules."""

from .ldm_names import Place, ldm_names, ldm_places, ldm_tensors
from .load import load_checkpoint

__all__ = ["Place", "ldm_names", "ldm_places", "ldm_tensors", "load_checkpoint"]
