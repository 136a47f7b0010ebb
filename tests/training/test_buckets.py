"""Buckets against kohya's rule by hand, and against trying every bucket."""

import math

import pytest
from hypothesis import given, strategies as st

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.dataset.buckets import bucket_sizes, fit
from lora_workbench.training.dataset.settings import DatasetSettings

sides = st.integers(1, 5000)


def settings(**options):
    return DatasetSettings("f", **options)


def test_the_buckets_of_512_by_hand():
    """Width w from 256 to 1024 in steps of 64, height 262144 / w rounded down, and both turned."""
    wide = [
        *((576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256)),
        (1024, 256),
    ]
    turned = [(height, width) for width, height in wide]
    assert list(bucket_sizes(settings())) == sorted([(512, 512), *wide, *turned])


@given(
    resolution=st.tuples(st.integers(4, 128), st.integers(4, 128)),
    step=st.sampled_from([8, 16, 32, 64]),
)
def test_laws_of_buckets(resolution, step):
    width, height = (8 * side for side in resolution)
    if step > min(width, height):
        return
    least, most = max(min(width, height) // 2, step), 2 * max(width, height)
    sizes = bucket_sizes(settings(resolution=(width, height), bucket_step=step))
    assert len(set(sizes)) == len(sizes) > 0
    for size in sizes:
        assert all(side % step == 0 and least <= side <= most for side in size)
        assert math.prod(size) <= width * height
        assert size[::-1] in sizes
    if width % step == height % step == 0:
        assert (width, height) in sizes


@given(size=st.tuples(sides, sides), resolution=st.sampled_from([64, 512, 1024]))
def test_the_chosen_bucket_cuts_off_least(size, resolution):
    """The part of a picture that a bucket shows, computed without logarithms."""

    def shown(bucket):
        scale = max(bucket[0] / size[0], bucket[1] / size[1])
        return math.prod(bucket) / (math.prod(size) * scale**2)

    options = settings(resolution=resolution, bucket_step=8 if resolution == 64 else 64)
    buckets = bucket_sizes(options)
    chosen = fit(size, buckets, options)
    assert shown(chosen.bucket) >= max(map(shown, buckets)) - 1e-6
    assert all(r >= b for r, b in zip(chosen.resized, chosen.bucket, strict=True))
    assert 0 in chosen.room
    assert fit(size[::-1], buckets, options).bucket == chosen.bucket[::-1]


def test_a_picture_of_a_buckets_size_is_left_as_it_is():
    options = settings()
    for bucket in bucket_sizes(options):
        found = fit(bucket, bucket_sizes(options), options)
        assert found.bucket == found.resized == bucket
        assert found.kept == 1


def test_the_resize_worked_example():
    """1600 x 900 to 640 x 384: 384 / 900 enlarges least while it covers, 1600 becomes 683."""
    options = settings()
    found = fit((1600, 900), bucket_sizes(options), options)
    assert found.bucket == (640, 384)
    assert found.resized == (683, 384)
    assert found.room == (43, 0)
    assert found.kept == pytest.approx(640 / 683)


def test_one_size_without_buckets():
    options = settings(buckets=False, resolution=(64, 32))
    assert bucket_sizes(options) == ((64, 32),)
    assert fit((100, 100), bucket_sizes(options), options).resized == (64, 64)


@pytest.mark.parametrize(
    ("size", "bucket", "resized"),
    [
        ((300, 200), (256, 192), (288, 192)),  # below the area: own size in steps
        ((512, 512), (512, 512), (512, 512)),
        ((2000, 1000), (704, 320), (704, 352)),  # 262144 of area is 724 x 362
        ((4000, 100), (1024, 64), (2560, 64)),  # a side of a bucket is at most 1024
        ((30, 40), (64, 64), (64, 85)),  # smaller than a step
    ],
)
def test_buckets_without_enlargement(size, bucket, resized):
    options = settings(upscale=False)
    found = fit(size, bucket_sizes(options), options)
    assert (found.bucket, found.resized) == (bucket, resized)


@given(size=st.tuples(st.integers(64, 5000), st.integers(64, 5000)))
def test_nothing_of_a_step_and_more_is_enlarged_without_upscale(size):
    options = settings(upscale=False, bucket_max=5056)
    found = fit(size, bucket_sizes(options), options)
    long_and_thin = min(size) * math.sqrt(512 * 512 / math.prod(size)) < 64
    assert found.enlarged(size) <= 1 or long_and_thin


def test_no_bucket_between_the_limits_is_an_error():
    with pytest.raises(LoraError, match="No bucket fits"):
        bucket_sizes(settings(resolution=72, bucket_min=72))
