"""Adapter kinds: what the tensors of one module mean, as a change of one base weight."""

from .base import Adapter, Additive, ThinFactors
from .diff import DiffAdapter
from .dora import DoraAdapter
from .loha import LohaAdapter
from .lokr import LokrAdapter
from .lora import LoraAdapter
from .oft import OftAdapter

__all__ = [
    "Adapter",
    "Additive",
    "DiffAdapter",
    "DoraAdapter",
    "LohaAdapter",
    "LokrAdapter",
    "LoraAdapter",
    "OftAdapter",
    "ThinFactors",
]
