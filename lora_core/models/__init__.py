"""Models: which weights they have, and every name LoRA files use for them."""

from .architectures import BASES
from .blocks import block_of
from .table import ModelTable, table_for_base, table_from_shapes
from .target import ModuleTargets, Target

__all__ = [
    "BASES",
    "ModelTable",
    "ModuleTargets",
    "Target",
    "block_of",
    "table_for_base",
    "table_from_shapes",
]
