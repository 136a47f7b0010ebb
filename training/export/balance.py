"""The same products without factors that fp16 would cut short.

A barely trained factor has numbers that fp16 holds with few digits or none: a power of two moves
from its partner to it, which is exact.
"""

import torch
from torch import Tensor

# Below this size much of a factor would fall under fp16's smallest normal number, 2**-14.
_SMALL_IN_FP16 = 2.0**-10


def balanced_ranks(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of ``up`` ``(out, rank, ...)`` against rows of ``down`` ``(rank, ...)``."""
    shift = _shift(_sizes(up.transpose(0, 1)), _sizes(down))
    ones = [1] * (up.dim() - 2)
    return up * shift.view(1, -1, *ones), down / shift.view(-1, *[1] * (down.dim() - 1))


def balanced(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors as wholes."""
    shift = _shift(_sizes(one[None]), _sizes(other[None]))
    return one * shift, other / shift


def holds(dtype: torch.dtype, *factors: Tensor) -> bool:
    """Whether factors keep their digits in a dtype: fp16 cuts those of barely trained ones short.

    Args:
        dtype: Of a file.
        factors: After balancing.
    """
    bound = torch.finfo(dtype).eps / 2  # of each number that is not cut short
    return all(
        bool((one.to(dtype).to(one.dtype) - one).norm() <= bound * one.norm()) for one in factors
    )


def _shift(sizes: Tensor, others: Tensor) -> Tensor:
    is_small = (torch.minimum(sizes, others) < _SMALL_IN_FP16) & (sizes * others > 0)
    halfway = ((others / sizes).log2() / 2).round()
    return torch.where(is_small, halfway, torch.zeros_like(halfway)).exp2()


def _sizes(rows: Tensor) -> Tensor:
    """Root mean square of each row."""
    return rows.flatten(1).square().mean(1).sqrt()
