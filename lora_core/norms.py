"""How much a LoRA changes each block of a model."""

import math
from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from .adapters import Adapter, DoraAdapter
from .binding import Binding
from .factors import ROTATIONS
from .models.blocks import block_of, block_rank
from .models.target import Target
from .patching.fused import fuse, row_chunks
from .stack import StackItem, Term, plan_of_bound


def block_norms(item: StackItem, binding: Binding) -> dict[str, float]:
    """Frobenius norm of what a LoRA adds to each block, at its strengths and weighting.

    Reads every factor; a product of two factors is never made whole. Of a DoRA its change before
    the norm is taken is counted alone, and OFT not at all: they depend on the base weight.

    Args:
        item: The LoRA.
        binding: It, seen from a model.

    Returns:
        Block (see ``block_of``; a text encoder is its component, ``te1``) to the norm over all its
        weights, in the unit of the weights. UNet blocks in the model's order, those of ``BASE``
        first, then text encoders. A block that nothing is added to is left out.

    Raises:
        LoraError: a factor cannot be read, or holds NaN or infinity.
    """
    squares: dict[str, float] = defaultdict(float)
    for terms in plan_of_bound(((item, binding),)).terms.values():
        counted = [term for term in terms if term.part.kind not in ROTATIONS]
        if counted:
            squares[_label(terms[0].target)] += _squared_norm(counted)
    return {block: math.sqrt(squares[block]) for block in sorted(squares, key=_rank)}


def _label(target: Target) -> str:
    return block_of(target) if target.component == "unet" else target.component


def _rank(block: str) -> tuple[bool, tuple[int, str, int]]:
    return block.startswith("te"), block_rank(block)


def _squared_norm(terms: Sequence[Term]) -> float:
    """Of one storage's whole delta."""
    target = terms[0].target
    shape = target.shape[::-1] if target.transposed else target.shape
    update = fuse(terms, shape, _product)
    total = 0.0
    for view in update.views:
        if not view.dense and view.up is not None and view.down is not None:
            total += float((_gram(view.up.T) * _gram(view.down)).sum())
        else:
            for start, stop in row_chunks((view.stop - view.start, *shape[1:])):
                total += float(view.delta(slice(start, stop)).double().square().sum())
    return max(total, 0.0)


def _product(term: Term) -> Adapter:
    adapter = term.lora.adapter(term.module, term.part)
    return adapter.change if isinstance(adapter, DoraAdapter) else adapter


def _gram(rows: Tensor) -> Tensor:
    """``rows @ rows.T`` in float64: |up @ down|^2 = sum(up.T up * down down.T)."""
    wide = rows.double()
    return wide @ wide.T
