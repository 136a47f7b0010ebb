"""A position-weighted 64-bit checksum of a storage's bits, computed on the storage's device."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from .fused import row_chunks
from .kernels import compiled_for

# Primes, so that no row length divides them: the top bit of a word has the same weight wherever it
# is, and in a column of flipped signs it would cancel between two rows that share a lane.
_LANES = 131_071
_FOLDS = (65_537, 32_771, 16_411)
BLOCK_FACTOR = 0x1B873595
"""5 mod 8: the powers have the longest period mod 2**32."""
_FOLD_FACTOR = 0x2545F495
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = 0xBF58476D1CE4E5B9


def _signed(value: int) -> int:
    """The two's-complement reading of the low 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


class Checksum:
    """Accumulates the bits of a storage row by row, in order.

    Words are 32-bit. Block after block is folded into lanes by Horner's rule modulo 2**32, so a
    word's weight depends on its block; the lanes are folded in the same way, then summed with
    64-bit weights of their own. A plain sum misses pairs of errors of +1 and -1 ulp; different
    weights do not. It costs one fused multiply-add per word, cheap while the words are in cache.
    """

    def __init__(self, device: torch.device) -> None:
        self._lanes = torch.empty(_LANES, dtype=torch.int32, device=device)
        self._done = 0

    def update(self, rows: Tensor) -> None:
        """Add whole rows of the storage, ``(rows, *)`` of any dtype."""
        loops = compiled_for(self._lanes, rows) if _has_words(rows) else None
        if loops is not None:
            self._done += loops.add_words(self._lanes, self._done, rows, BLOCK_FACTOR)
        else:
            self._add(_words(rows))

    def copy(self, out: Tensor, rows: Tensor) -> None:
        """Copy ``rows`` into ``out``, of the same shape and dtype, and add them, read once.

        Where compiled loops cannot do both in one pass, ``out`` is read for the second.
        """
        loops = compiled_for(self._lanes, out, rows)
        if loops is None or not (_has_words(out) and _has_words(rows)):
            for start, stop in row_chunks(tuple(rows.shape)):  # summed while in cache
                out[start:stop].copy_(rows[start:stop])
                self.update(out[start:stop])
            return
        self._done += loops.copy_words(self._lanes, self._done, out, rows, BLOCK_FACTOR)

    def _add(self, words: Tensor) -> None:
        taken = 0
        while taken < words.numel():
            place = self._done % _LANES
            count = min(_LANES - place, words.numel() - taken)
            lanes, piece = self._lanes[place : place + count], words[taken : taken + count]
            if self._done < _LANES:
                lanes.copy_(piece)
            else:
                torch.add(piece, lanes, alpha=BLOCK_FACTOR, out=lanes)
            self._done += count
            taken += count

    def value(self) -> Tensor | int:
        """The checksum so far, 64 bits, signed: a 0-d tensor on the device, or an int.

        An int where compiled loops have it at hand: each operation of torch gives up the
        interpreter's lock, and threads that restore small storages would wait for one another.
        """
        count = min(_LANES, self._done)
        loops = compiled_for(self._lanes)
        if loops is not None:
            weights = _lane_weights(self._lanes.device)
            return int(loops.value_of(self._lanes, count, _FOLDS, _FOLD_FACTOR, weights))
        lanes = self._lanes[:count]
        for width in _FOLDS:
            if lanes.numel() > width:
                more, lanes = lanes[width:], lanes[:width].clone()
                part = lanes[: more.numel()]
                torch.add(more, part, alpha=_FOLD_FACTOR, out=part)
        return (lanes.to(torch.int64) * _lane_weights(lanes.device)[: lanes.numel()]).sum()


@lru_cache(maxsize=8)
def _lane_weights(device: torch.device) -> Tensor:
    """Distinct odd 64-bit weights, one per folded lane."""
    index = torch.arange(1, _FOLDS[-1] + 1, dtype=torch.int64, device=device)
    mixed = index * _signed(_GOLDEN)
    mixed = (mixed ^ (mixed >> 29)) * _signed(_MIX)
    return mixed | 1


def _words(rows: Tensor) -> Tensor:
    """The bits of ``rows`` as 32-bit words; where rows are not whole words, one word per element.

    The choice depends on row shape and dtype alone, so that every copy of a storage agrees.
    """
    size = rows.element_size()
    flat = rows.reshape(-1)
    if math.prod(rows.shape[1:]) * size % 4 == 0:
        return (flat if flat.storage_offset() * size % 4 == 0 else flat.clone()).view(torch.int32)
    return flat.view(torch.int16 if size == 2 else torch.uint8).to(torch.int32)


def _has_words(rows: Tensor) -> bool:
    """Whether contiguous ``rows`` are whole words in place."""
    size = rows.element_size()
    return math.prod(rows.shape[1:]) * size % 4 == 0 and rows.storage_offset() * size % 4 == 0


def checksum(weight: Tensor) -> Tensor | int:
    """Checksum of a whole tensor; see ``Checksum.value``."""
    total = Checksum(weight.device)
    total.update(weight)
    return total.value()
