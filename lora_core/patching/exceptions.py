"""The words of a storage that a computed undo gets wrong, and where they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_BLOCK = 1 << 16
_BITMAP_FROM = 1 / 16  # 16 bits an index against 1 bit a weight


@dataclass(frozen=True)
class Exceptions:
    """Original words where the undo gives others.

    Below one exception in 16 ``where`` holds 16-bit offsets in blocks of 65,536 elements, with
    ``counts`` per block; from there on a bitmap, and ``counts`` is None.
    """

    words: Tensor
    where: Tensor
    counts: Tensor | None

    def nbytes(self) -> int:
        """Memory of the three tensors."""
        tensors = (self.words, self.where, self.counts)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def bits_of(rows: Tensor) -> Tensor:
    """A flat integer view of contiguous rows."""
    return rows.view(-1).view(_BITS[rows.element_size()])


def find_exceptions(base_bits: Tensor, back_bits: Tensor) -> Exceptions:
    """Compare two flat integer views of the same length; record ``base_bits`` where they differ.

    By ``bitwise_xor``: comparing 16-bit integers with ``ne`` is several times slower on a CPU.
    """
    differs = torch.bitwise_xor(base_bits, back_bits)
    index = differs.nonzero().squeeze(1)
    words = base_bits[index]
    length = base_bits.numel()
    if index.numel() >= length * _BITMAP_FROM:
        return Exceptions(words, _packed(differs != 0), None)
    blocks = torch.arange(0, -(-length // _BLOCK) + 1, device=index.device) * _BLOCK
    counts = torch.searchsorted(index, blocks).diff().to(torch.int32)
    return Exceptions(words, (index & (_BLOCK - 1)).to(torch.int16), counts)  # wraps above 32,767


def put_exceptions(bits: Tensor, exceptions: Exceptions) -> None:
    """Write the recorded words into the flat integer view ``bits``."""
    if exceptions.counts is None:
        mask = _unpacked(exceptions.where, bits.numel())
        bits.masked_scatter_(mask, exceptions.words)
        return
    blocks = torch.arange(exceptions.counts.numel(), device=bits.device) * _BLOCK
    index = torch.repeat_interleave(blocks, exceptions.counts.to(torch.int64))
    bits[index + (exceptions.where.to(torch.int64) & (_BLOCK - 1))] = exceptions.words


def _packed(mask: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.numel() % 8))
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded.view(-1, 8) << shifts).sum(dim=1, dtype=torch.uint8)


def _unpacked(packed: Tensor, length: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(1) >> shifts) & 1).view(-1)[:length].to(torch.bool)
