"""How far a file that was read again is from what was trained."""

import math

import torch
from torch import Tensor


def product_error(
    up: Tensor, down: Tensor, scale: float, live_up: Tensor, live_down: Tensor, live_scale: float
) -> float:
    """Relative Frobenius error of ``scale * up @ down``; no product is made."""
    difference = _norm(
        torch.cat([live_scale * live_up, -scale * up.flatten(1).double()], 1),
        torch.cat([live_down, down.flatten(1).double()]),
    )
    return ratio(difference, _norm(live_scale * live_up, live_down))


def ratio(difference: float, size: float) -> float:
    """Of two norms; 0 where both are 0."""
    if difference == 0:
        return 0.0
    return difference / size if size else math.inf


def made_up_base(rows: int, columns: int, norms: Tensor | float) -> Tensor:
    """A weight ``(rows, columns)``, float32, for kinds whose delta depends on one."""
    noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return (noise / noise.norm(dim=1, keepdim=True) * norms).float()


def _norm(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of ``up @ down``, which is never made: their triangular factors have it."""
    left, right = torch.linalg.qr(up, mode="r").R, torch.linalg.qr(down.T, mode="r").R
    return float(torch.linalg.matrix_norm(left @ right.T))
