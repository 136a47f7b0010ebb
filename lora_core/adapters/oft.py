"""OFT and BOFT: the outputs of a weight, turned in blocks by orthogonal matrices."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_EPS = 1e-8
"""Added to the norm that a constraint bounds, as LyCORIS and kohya do."""


@dataclass(frozen=True)
class Rotation:
    """What an OFT does to the rows of a matrix, at some strength; float32.

    Attributes:
        turns: The matrices less the identity, ``(stages, blocks, size, size)``.
        gain: What each row is multiplied by at the end, less 1, ``(rows, 1)``; or None.
        is_butterfly: Whether each stage has other rows in one block (BOFT); else neighbours.
    """

    turns: Tensor
    gain: Tensor | None = None
    is_butterfly: bool = False

    def tensors(self) -> tuple[Tensor, ...]:
        """``(turns,)`` or ``(turns, gain)``."""
        return (self.turns,) if self.gain is None else (self.turns, self.gain)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Rotation":
        """The same of changed tensors."""
        gain = None if self.gain is None else change(self.gain)
        return replace(self, turns=change(self.turns), gain=gain)

    def change(self, rows: Tensor) -> Tensor:
        """What ``rows`` ``(rows, columns)``, float32, gain by it.

        Nothing is taken off again: of a small turn no digit is lost.
        """
        total: Tensor | None = None
        for stage, turns in enumerate(self.turns):
            now = rows if total is None else rows + total
            turned = _butterfly(now, turns, stage) if self.is_butterfly else _turned(now, turns)
            total = turned if total is None else total.add_(turned)
        assert total is not None
        if self.gain is None:
            return total
        return total.add_((rows + total).mul_(self.gain))


def _turned(rows: Tensor, turns: Tensor) -> Tensor:
    """Each block's matrix times its rows."""
    blocks, size, _ = turns.shape
    return torch.bmm(turns, rows.reshape(blocks, size, -1)).reshape(rows.shape)


def _butterfly(rows: Tensor, turns: Tensor, stage: int) -> Tensor:
    """As ``_turned``, with rows that lie ``2^stage * size / 2`` apart as neighbours."""
    apart = 2**stage * (turns.shape[-1] // 2)
    order = torch.arange(rows.shape[0], device=rows.device)
    order = order.reshape(-1, 2, apart).transpose(1, 2).flatten()
    turned = _turned(rows[order], turns)
    return torch.empty_like(turned).index_copy_(0, order, turned)


@dataclass(frozen=True)
class OftAdapter:
    """``W = rescale * turn(base_weight)``: each block of outputs is turned by an orthogonal matrix.

    With ``Q = blocks - blocks^T`` the matrix is ``R = (I + Q) (I - Q)^-1``. ``blocks``
    ``(n, size, size)`` (OFT): the n-th ``size`` neighbouring outputs are multiplied by ``R^T``.
    ``(stages, n, size, size)`` (BOFT): by ``R``, in several stages. ``rescale`` has one number per
    output. ``alpha`` is a constraint: where it is larger than 0, the Frobenius norm of all Q is at
    most ``alpha * out``.

    Strength m takes each matrix as ``I + m (R - I)``, as LyCORIS and kohya do, and the rescale as
    ``1 + m (rescale - 1)``, where LyCORIS takes it whole at every strength: a strength near 0
    would change a weight, and 0 not.

    Source: arXiv:2306.07280; arXiv:2311.06243 (BOFT); LyCORIS ``diag-oft`` and ``boft``; kohya.
    """

    blocks: Tensor
    rescale: Tensor | None = None
    alpha: float | None = None

    @property
    def scale(self) -> float:
        """Always 1: alpha is no scale here."""
        return 1.0

    @property
    def outputs(self) -> int:
        """Of the weight."""
        return self.blocks.shape[-3] * self.blocks.shape[-1]

    def tensors(self) -> tuple[Tensor, ...]:
        """``(blocks,)`` or ``(blocks, rescale)``."""
        return (self.blocks,) if self.rescale is None else (self.blocks, self.rescale)

    def to(self, device: object) -> "OftAdapter":
        """The same adapter with its tensors copied to ``device``."""
        move = [tensor.to(device=device, copy=True) for tensor in self.tensors()]  # type: ignore[call-overload]
        return replace(self, blocks=move[0], rescale=move[1] if len(move) > 1 else None)

    def rotation(self, strength: float = 1.0) -> Rotation:
        """What it does at a strength."""
        skew = self.blocks.float() - self.blocks.float().transpose(-1, -2)
        bound = (self.alpha or 0.0) * self.outputs
        if bound > 0:
            norm = torch.linalg.vector_norm(skew) + _EPS
            skew = skew * (bound / norm).clamp(max=1.0)
        identity = torch.eye(skew.shape[-1], device=skew.device)
        # (I + Q) (I - Q)^-1 - I = 2 Q (I - Q)^-1, and the two factors commute.
        turns = torch.linalg.solve(identity - skew, 2 * strength * skew)
        gain = None
        if self.rescale is not None:
            gain = strength * (self.rescale.float().reshape(-1, 1) - 1)
        if self.blocks.dim() == 3:
            return Rotation(turns.transpose(-1, -2)[None], gain)
        return Rotation(turns, gain, is_butterfly=True)

    def delta(self, base_weight: Tensor) -> Tensor:
        """``W - base_weight`` in float32, shape of ``base_weight``."""
        rows = base_weight.float().flatten(1)
        return self.rotation().change(rows).reshape(base_weight.shape)
