"""The words of a storage that a computed undo gets wrong, and where they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .fused import add_rounded
from .kernels import calculating_for, compiled_for

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_BLOCK = 1 << 16
# Equal in size at 1/16 (16 bits an index, 1 bit a weight); indices are put back 4 times as fast.
_BITMAP_FROM = 1 / 12
# Bytes of 0 and 1 to bits and back, eight at a time: one multiplication moves byte i to bit i of
# the top byte; another copies a byte into eight places, of which a mask leaves bit i in byte i.
_GATHER = 0x0102040810204080
_SPREAD = 0x0101010101010101
_ONE_EACH = 0x8040201008040201 - (1 << 64)


@dataclass(frozen=True)
class Exceptions:
    """Original words where the undo gives others.

    Below one exception in 12 ``where`` holds 16-bit offsets in blocks of 65,536 elements, with
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


def exceptions_of(base: Tensor, merged: Tensor, delta: Tensor) -> Exceptions:
    """The words of ``base`` that ``round(merged - delta)`` does not give back.

    Args:
        base: ``(rows, columns)``, contiguous.
        merged: The same with the delta, in the same dtype.
        delta: The same in float32.
    """
    loops = calculating_for(base, merged, delta)
    if loops is None:
        return find_exceptions(bits_of(base), bits_of(add_rounded(merged, delta, -1)))
    bits = bits_of(base)
    differs, words = torch.empty_like(bits, dtype=torch.uint8), torch.empty_like(bits)
    where = torch.empty_like(bits, dtype=torch.int16)
    counts = torch.empty(-(-bits.numel() // _BLOCK), dtype=torch.int32)
    found = loops.find_exceptions(bits, merged, delta, differs, words, where, counts)
    if found >= bits.numel() * _BITMAP_FROM:
        return Exceptions(words[:found].clone(), _packed(differs), None)
    return Exceptions(words[:found].clone(), where[:found].clone(), counts)


def find_exceptions(base_bits: Tensor, back_bits: Tensor) -> Exceptions:
    """Compare two flat integer views of the same length; record ``base_bits`` where they differ.

    By ``bitwise_xor``: on a CPU ``ne`` of 16-bit integers takes 3 times as long.
    """
    differs = torch.bitwise_xor(base_bits, back_bits)
    index = differs.nonzero().squeeze(1)
    words = base_bits.index_select(0, index)
    length = base_bits.numel()
    if index.numel() >= length * _BITMAP_FROM:
        return Exceptions(words, _packed(differs), None)
    blocks = torch.arange(0, -(-length // _BLOCK) + 1, device=index.device) * _BLOCK
    counts = torch.searchsorted(index, blocks).diff().to(torch.int32)
    return Exceptions(words, index.to(torch.int16), counts)  # the low 16 bits


def put_exceptions(bits: Tensor, exceptions: Exceptions) -> None:
    """Write the recorded words into the flat integer view ``bits``."""
    loops = compiled_for(bits)
    if loops is not None:
        if exceptions.counts is None:
            loops.put_masked(bits, exceptions.words, exceptions.where)
        else:
            loops.put_counted(bits, exceptions.words, exceptions.where, exceptions.counts)
        return
    if exceptions.counts is None:
        mask = _unpacked(exceptions.where, bits.numel())
        bits.masked_scatter_(mask, exceptions.words)
        return
    blocks = torch.arange(exceptions.counts.numel(), device=bits.device) * _BLOCK
    index = torch.repeat_interleave(blocks, exceptions.counts.to(torch.int64))
    index += exceptions.where.to(torch.int64) & (_BLOCK - 1)
    bits.index_copy_(0, index, exceptions.words)


def _packed(differs: Tensor) -> Tensor:
    length = differs.numel()
    mask = torch.zeros(-(-length // 8) * 8, dtype=torch.bool, device=differs.device)
    mask[:length] = differs
    return ((mask.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def _unpacked(packed: Tensor, length: int) -> Tensor:
    spread = (packed.to(torch.int64) * _SPREAD) & _ONE_EACH
    return spread.view(torch.uint8)[:length].to(torch.bool)
