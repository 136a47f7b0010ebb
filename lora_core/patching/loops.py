"""The ledger's hot steps as compiled loops that read and write memory once, each on one thread.

Tensors are contiguous, on the CPU, and handed to the loops by address: a view would cost an
operation that gives up the interpreter's lock. Inside, the type of a weight's bits tells its dtype:
``uint16`` is float16, ``int16`` bfloat16, ``float32`` itself. Importing this module needs numba,
the extra ``[cpu]``. ``kernels`` imports it under a name of its own; it imports nothing of ours.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

_FEATURES = binding.get_host_cpu_features()
CONVERTS_HALF = bool(_FEATURES.get("f16c") or _FEATURES.get("fp-armv8"))
"""Whether the processor converts float16 itself; where not, compiled code would not link."""

_TILE = 2048  # elements; what a loop holds stays in the fastest cache
_PIECE = 1 << 15  # words, 128 KB; read once from memory, the second time from a core's own cache
_BLOCK = 1 << 16  # elements that share a count of exceptions
_WORD, _FLOAT = ir.IntType(32), ir.FloatType()
_KINDS = {
    torch.float32: np.float32(0),
    torch.float16: np.uint16(0),
    torch.bfloat16: np.int16(0),
    torch.int32: np.int32(0),
    torch.int16: np.int16(0),
    torch.uint8: np.uint8(0),
}
"""What each dtype's elements are to the loops."""


def add_rounded(out: Tensor, base: Tensor, delta: Tensor, sign: int) -> None:
    """``out = round(base + sign * delta)``, ``sign`` 1 or -1; ``out`` may be ``base``."""
    kind = _KINDS[base.dtype]
    _add_rounded(
        out.data_ptr(), base.data_ptr(), delta.data_ptr(), base.numel(), np.float32(sign), kind
    )


def add_words(lanes: Tensor, done: int, words: Tensor, factor: int) -> int:
    """``Checksum.update``: ``words``, of any dtype, follow ``done`` words; return their number."""
    count = words.numel() * words.element_size() // 4
    at = (lanes.data_ptr(), words.data_ptr())
    _add_words(at, lanes.numel(), done, count, np.int32(factor))
    return count


def copy_words(lanes: Tensor, done: int, out: Tensor, words: Tensor, factor: int) -> int:
    """``add_words``, and ``out = words`` on the way."""
    count = words.numel() * words.element_size() // 4
    at = (lanes.data_ptr(), words.data_ptr(), out.data_ptr())
    _copy_words(at, lanes.numel(), done, count, np.int32(factor))
    return count


def value_of(
    lanes: Tensor, count: int, widths: tuple[int, ...], factor: int, weights: Tensor
) -> int:
    """``Checksum.value``: fold ``count`` lanes to each of ``widths``, then sum with ``weights``."""
    at = (lanes.data_ptr(), weights.data_ptr())
    return int(_value_of(at, count, widths, np.int32(factor)))


def find_exceptions(
    bits: Tensor,
    merged: Tensor,
    delta: Tensor,
    differs: Tensor,
    words: Tensor,
    where: Tensor,
    counts: Tensor,
) -> int:
    """Where ``round(merged - delta)`` has other bits than the base, and the base's words there.

    All have the base's length, but for ``counts``, one per block of 65,536 elements. ``differs``
    gets 0 or 1 per element; of ``words`` and ``where`` the first elements are meant, as many as
    are returned.
    """
    tensors = (bits, merged, delta, differs, words, where)
    addresses = tuple(tensor.data_ptr() for tensor in tensors)
    kinds = (_KINDS[bits.dtype], _KINDS[merged.dtype])
    return int(_find_exceptions(addresses, bits.numel(), counts.numpy(), *kinds))


def put_counted(bits: Tensor, words: Tensor, where: Tensor, counts: Tensor) -> None:
    """Write ``words`` to their 16-bit places in the blocks of ``bits``."""
    _put_counted(bits.numpy(), words.numpy(), where.numpy(), counts.numpy())


def put_masked(bits: Tensor, words: Tensor, packed: Tensor) -> None:
    """Write ``words`` where ``packed``, one bit per element, has ones."""
    _put_masked(bits.numpy(), words.numpy(), packed.numpy())


@intrinsic
def _pointer(_typing: Any, address: Any, kind: Any) -> Any:
    """An address as a pointer to elements of the type of ``kind``."""

    def generate(context: Any, build: Any, signature: Any, values: Any) -> Any:
        return build.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind)(address, kind), generate


@intrinsic
def _widen(_typing: Any, bits: Any) -> Any:
    """A weight's bits as float32; exact."""

    def generate(_context: Any, build: Any, _signature: Any, values: Any) -> Any:
        (value,) = values
        if bits == types.uint16:
            return build.fpext(build.bitcast(value, ir.HalfType()), _FLOAT)
        if bits == types.int16:
            return build.bitcast(build.shl(build.zext(value, _WORD), _WORD(16)), _FLOAT)
        return value

    return types.float32(bits), generate


@intrinsic
def _narrow(_typing: Any, number: Any, like: Any) -> Any:
    """A float32 rounded to the dtype of ``like``, to nearest even, as bits."""

    def generate(_context: Any, build: Any, _signature: Any, values: Any) -> Any:
        value = values[0]
        if like == types.uint16:
            return build.bitcast(build.fptrunc(value, ir.HalfType()), ir.IntType(16))
        if like == types.int16:
            word = build.bitcast(value, _WORD)
            odd = build.and_(build.lshr(word, _WORD(16)), _WORD(1))
            near = build.lshr(build.add(build.add(word, _WORD(0x7FFF)), odd), _WORD(16))
            is_nan = build.fcmp_unordered("uno", value, value)
            return build.trunc(build.select(is_nan, _WORD(0x7FC0), near), ir.IntType(16))
        return value

    return like(number, like), generate


@intrinsic
def _copy_bytes(_typing: Any, out_at: Any, at: Any, count: Any) -> Any:
    """The C library's ``memcpy``: it overwrites memory without reading it first."""

    def generate(context: Any, build: Any, _signature: Any, values: Any) -> Any:
        out, source = (build.inttoptr(value, ir.IntType(8).as_pointer()) for value in values[:2])
        cgutils.raw_memcpy(build, out, source, values[2], 1)
        return context.get_dummy_value()

    return types.void(out_at, at, count), generate


@njit(nogil=True, cache=True)
def _add_rounded(
    out_at: int, base_at: int, delta_at: int, count: int, sign: Any, kind: Any
) -> None:
    base = carray(_pointer(base_at, kind), count)
    delta = carray(_pointer(delta_at, np.float32(0)), count)
    tile = np.empty(_TILE, base.dtype)  # loops whose arrays lie apart use the widest registers
    for start in range(0, count, _TILE):
        old, change = base[start : start + _TILE], delta[start : start + _TILE]
        for i in range(old.size):
            tile[i] = _narrow(_widen(old[i]) + sign * change[i], old[i])
        at = out_at + start * tile.itemsize
        _copy_bytes(at, tile.ctypes.data, old.size * tile.itemsize)


@njit(nogil=True, cache=True)
def _add_words(at: Any, width: int, done: int, count: int, factor: Any) -> None:
    lanes = carray(_pointer(at[0], np.int32(0)), width)
    words = carray(_pointer(at[1], np.int32(0)), count)
    taken = 0
    while taken < count:
        place = (done + taken) % width
        sums, more = lanes[place:], words[taken:]
        size = min(_PIECE, sums.size, more.size)
        if done + taken < width:
            for i in range(size):
                sums[i] = more[i]
        else:
            for i in range(size):
                sums[i] = np.int32(sums[i] * factor + more[i])
        taken += size


@njit(nogil=True, cache=True)
def _copy_words(at: Any, width: int, done: int, count: int, factor: Any) -> None:
    for start in range(0, count, _PIECE):
        size, here = min(_PIECE, count - start), 4 * start
        _add_words((at[0], at[1] + here), width, done + start, size, factor)
        _copy_bytes(at[2] + here, at[1] + here, 4 * size)


@njit(nogil=True, cache=True)
def _value_of(at: Any, count: int, widths: Any, factor: Any) -> int:
    lanes = carray(_pointer(at[0], np.int32(0)), count)
    weights = carray(_pointer(at[1], np.int64(0)), widths[-1])
    for width in widths:
        if lanes.size > width:
            more, folded = lanes[width:], np.empty(width, np.int32)
            for i in range(more.size):
                folded[i] = np.int32(lanes[i] * factor + more[i])
            folded[more.size :] = lanes[more.size : width]
            lanes = folded
    total = np.int64(0)
    for i in range(lanes.size):
        total += np.int64(lanes[i]) * weights[i]
    return total


@njit(nogil=True, cache=True)
def _find_exceptions(addresses: Any, size: int, counts: Any, bits_kind: Any, kind: Any) -> int:
    bits_at, merged_at, delta_at, differs_at, words_at, where_at = addresses
    bits, words = (
        carray(_pointer(bits_at, bits_kind), size),
        carray(_pointer(words_at, bits_kind), size),
    )
    merged, delta = (
        carray(_pointer(merged_at, kind), size),
        carray(_pointer(delta_at, np.float32(0)), size),
    )
    differs, where = (
        carray(_pointer(differs_at, np.uint8(0)), size),
        carray(_pointer(where_at, np.int16(0)), size),
    )
    back, found = np.empty(_TILE, merged.dtype), 0
    for block in range(counts.size):
        before, end = found, min((block + 1) * _BLOCK, size)
        for start in range(block * _BLOCK, end, _TILE):
            stop = min(start + _TILE, end)
            new, change = merged[start:stop], delta[start:stop]
            old, flags = bits[start:stop], differs[start:stop]
            for i in range(new.size):
                back[i] = _narrow(_widen(new[i]) - change[i], new[i])
            back_bits = back.view(bits.dtype)
            for i in range(new.size):
                flags[i] = back_bits[i] != old[i]
            for i in range(new.size):
                words[found] = old[i]
                where[found] = start + i
                found += flags[i]
        counts[block] = found - before
    return found


@njit(nogil=True, cache=True)
def _put_counted(bits: Any, words: Any, where: Any, counts: Any) -> None:
    taken = 0
    for block in range(counts.size):
        part = bits[block * _BLOCK : (block + 1) * _BLOCK]
        for i in range(taken, taken + counts[block]):
            part[np.uint16(where[i])] = words[i]
        taken += counts[block]


@njit(nogil=True, cache=True)
def _put_masked(bits: Any, words: Any, packed: Any) -> None:
    taken = 0
    for i in range(bits.size):
        if packed[i >> 3] >> (i & 7) & 1:
            bits[i] = words[taken]
            taken += 1
