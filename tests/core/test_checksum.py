"""The checksum tells bits apart, whatever the layout, and only bits."""

import pytest
import torch

from lora_workbench.lora_core.patching.checksum import Checksum, checksum

from .toy_model import MERGEABLE, bits, normal

BIG = (600, 1024)  # more words than lanes, and the row length a power of 2
LANES, FOLDS = 131_071, (65_537, 32_771, 16_411)
every_dtype = pytest.mark.parametrize("dtype", MERGEABLE, ids=str)
INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def value(weight):
    return int(checksum(weight))


def words(weight):
    """The weight's memory as integers of its own size, writable."""
    return weight.view(INTEGER[weight.element_size()]).view(-1)


@every_dtype
@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 6, 3, 3), BIG], ids=str)
def test_every_single_bit_counts(dtype, shape, generator):
    weight = normal(shape, generator, dtype=dtype)
    before = value(weight)
    for place in torch.randint(weight.numel(), (4,), generator=generator).tolist():
        for bit in range(weight.element_size() * 8):
            mask = torch.tensor(1 << bit).to(words(weight).dtype)  # the top bit wraps
            words(weight)[place] ^= mask
            assert value(weight) != before
            words(weight)[place] ^= mask
    assert value(weight) == before


@every_dtype
def test_errors_that_cancel_in_a_sum_are_seen(dtype, generator):
    weight = normal(BIG, generator, dtype=dtype)
    words(weight).clamp_(-100, 100)  # room for the steps
    before = value(weight)
    distances = [1, 2, 1024, *FOLDS, LANES, 2 * LANES, 4 * LANES]
    for distance in distances:
        if distance < weight.numel():
            changed = weight.clone()
            words(changed)[0] += 1
            words(changed)[distance] -= 1
            assert value(changed) != before


@every_dtype
def test_exchanged_elements_and_rows_are_seen(dtype, generator):
    weight = normal(BIG, generator, dtype=dtype)
    before = value(weight)
    for first, second in ((0, 1), (3, 1024), (0, LANES), (10, 10 + 2 * LANES), (5, 5 + FOLDS[-1])):
        changed = weight.clone()
        pair = words(changed)[[first, second]]
        words(changed)[[second, first]] = pair
        assert (pair[0] == pair[1]) == (value(changed) == before)
    rows = bits(weight)
    rows[[0, 128]] = rows[[128, 0]]
    assert value(rows.view(dtype)) != before


@pytest.mark.parametrize("columns", [512, 1024, 1280, 2048], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_column_of_negative_zeros_that_became_positive_is_seen(dtype, columns):
    """Only top bits differ, an even number of them, at a fixed distance."""
    weight = torch.zeros(512, columns, dtype=dtype)
    before = value(weight)
    for column in (0, 1, columns - 1):
        changed = weight.clone()
        changed[:, column] = -0.0
        assert value(changed) != before
    assert value(torch.full_like(weight, -0.0)) != before


@every_dtype
def test_the_memory_layout_does_not_count(dtype, generator):
    weight = normal((6, 4, 3, 3), generator, dtype=dtype)
    wide = torch.zeros(6, 7, 3, 3, dtype=dtype)
    wide[:, 2:6] = weight
    shifted = torch.cat([torch.zeros(1, dtype=dtype), weight.flatten()])[1:].view(6, 4, 3, 3)
    copies = [
        weight.contiguous(memory_format=torch.channels_last),
        wide[:, 2:6],
        shifted,
        weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ]
    assert {value(copy) for copy in copies} == {value(weight)}


@every_dtype
@pytest.mark.parametrize("shape", [(301, 7), (100, 33), BIG, (1000,)], ids=str)
def test_the_cut_into_rows_does_not_count(dtype, shape, generator):
    weight = normal(shape, generator, dtype=dtype)
    for step in (1, 13, 64):
        total = Checksum(torch.device("cpu"))
        for start in range(0, shape[0], step):
            total.update(weight[start : start + step])
        assert int(total.value()) == value(weight)


def test_the_length_counts():
    assert len({value(torch.zeros(rows, 2) + 1) for rows in (1, 2, 3, LANES, LANES + 1)}) == 5


def test_nan_payloads_count():
    weight = torch.tensor([[1.0, float("nan")]])
    other = weight.clone()
    words(other)[1] ^= 1
    assert torch.isnan(other[0, 1])
    assert value(other) != value(weight)


def test_value_can_be_asked_for_in_between(generator):
    weight = normal((400, 512), generator)
    total = Checksum(torch.device("cpu"))
    total.update(weight[:200])
    assert int(total.value()) == value(weight[:200])
    total.update(weight[200:])
    assert int(total.value()) == value(weight)
