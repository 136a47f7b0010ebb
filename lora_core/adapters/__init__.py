"""Adapter kinds: what the tensors of one module mean, as a change of one base weight."""

from .base import Adapter, ThinFactors
from .diff import DiffAdapter
from .dora import DoraAdapter
from .lora import LoraAdapter

__all__ = ["Adapter", "DiffAdapter", "DoraAdapter", "LoraAdapter", "ThinFactors"]
