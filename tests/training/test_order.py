"""The order of pictures: complete, one bucket a batch, and a function of the number alone."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.dataset.order import Order, validation_batches
from lora_workbench.training.picture_feed import PictureFeed


def shown(batches):
    return Counter((p.sample.name, p.repeat) for batch in batches for p in batch)


def told(batches):
    return [[(p.sample.name, p.repeat, p.flip, p.crop) for p in batch] for batch in batches]


@pytest.fixture
def shapes(folder):
    """Two buckets, of 7 and 2 x 3 showings."""
    for number in range(7):
        folder.add(f"square{number}.png", (64, 64), "x")
    for number in range(2):
        folder.add(f"3_wide/{number}.png", (128, 64), "x")
    return folder


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 13])
def test_every_showing_occurs_once_in_every_epoch(shapes, batch_size):
    order = Order(shapes.scan(), batch_size, seed=0)
    for epoch in range(3):
        batches = order.epoch_batches(epoch)
        assert set(shown(batches).values()) == {1}
        assert len(shown(batches)) == 13
        assert len(batches) == order.batches_per_epoch
        for batch in batches:
            assert len({p.sample.fit.bucket for p in batch}) == 1
            assert {p.epoch for p in batch} == {epoch}
        sizes = Counter(len(batch) for batch in batches)
        assert set(sizes) <= {batch_size, 7 % batch_size, 6 % batch_size}


def test_a_batch_needs_only_its_number(shapes):
    """A run that goes on at batch 9 sees what the uninterrupted one saw."""
    dataset = shapes.scan(flip=0.5, crop="random")
    whole = Order(dataset, 2, seed=3)
    straight = told(whole.batch_at(number) for number in range(25))
    for start in (9, 24, 0):
        resumed = Order(shapes.scan(flip=0.5, crop="random"), 2, seed=3)
        assert told(resumed.batch_at(n) for n in range(start, 25)) == straight[start:]
    backwards = [whole.batch_at(number) for number in reversed(range(25))]
    assert told(reversed(backwards)) == straight


def test_nothing_but_seed_and_epoch_matters(shapes):
    dataset = shapes.scan(flip=0.5)
    first = told(Order(dataset, 2, seed=0).epoch_batches(0))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert told(Order(dataset, 2, seed=0).epoch_batches(0)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert told(Order(dataset, 2, seed=1).epoch_batches(0)) != first
    assert told(Order(dataset, 2, seed=0).epoch_batches(1)) != first


def test_every_epoch_deals_the_pictures_into_other_batches(folder):
    order = Order(folder.fill(24).scan(), 4, seed=0)
    epochs = [[order.batch_at(6 * epoch + n) for n in range(6)] for epoch in range(4)]
    assert [told(batches) for batches in epochs] == [told(order.epoch_batches(e)) for e in range(4)]
    dealt = {frozenset(frozenset(shown([batch])) for batch in batches) for batches in epochs}
    assert len(dealt) == 4


def test_buckets_are_mixed_over_an_epoch(folder):
    for number in range(20):
        folder.add(f"a{number}.png", (64, 64), "x")
        folder.add(f"b{number}.png", (128, 64), "x")
    batches = Order(folder.scan(), 2, seed=0).epoch_batches(0)
    widths = [batch[0].sample.fit.bucket[0] for batch in batches]
    changes = sum(one != other for one, other in pairwise(widths))
    assert 5 <= changes <= 15  # 2 if one bucket came after the other


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_mirrored_pictures(folder, share):
    dataset = folder.fill(20).scan(flip=share, repeats=20)
    picks = [p for batch in Order(dataset, 4, seed=0).epoch_batches(0) for p in batch]
    mirrored = sum(p.flip for p in picks) / len(picks)
    assert mirrored == pytest.approx(share, abs=0.07 if 0 < share < 1 else 0)


def test_random_crops_are_few_places_of_each_picture(folder):
    folder.add("a.png", (200, 64), "x")
    options = {"buckets": False, "bucket_step": 64, "crop": "random", "crop_places": 3}
    dataset = folder.scan(**options, repeats=200)
    places = {
        seed: {p.crop for p in Order(dataset, 200, seed).epoch_batches(0)[0]} for seed in (0, 1)
    }
    assert 2 <= len(places[0]) <= 3
    assert places[0] == places[1]  # so that another run finds the latents of the first
    assert all(0 <= left <= 136 and top == 0 for left, top in places[0])


def test_the_center_worked_example(folder):
    folder.add("a.png", (200, 64), "x")
    pick = Order(folder.scan(buckets=False, bucket_step=64), 1, 0).batch_at(0)[0]
    assert pick.crop == (68, 0)


def test_a_batch_larger_than_the_data_is_an_error(shapes):
    with pytest.raises(LoraError, match="larger than the dataset"):
        Order(shapes.scan(), 14, seed=0)
    with pytest.raises(LoraError, match="at least one"):
        Order(shapes.scan(), 0, seed=0)


def test_validation_is_fixed_and_never_trained(folder):
    dataset = folder.fill(20).scan(validation=0.4, flip=1.0)
    batches = validation_batches(dataset, 3)
    held_out = [p.sample.name for batch in batches for p in batch]
    assert held_out == [sample.name for sample in dataset.validation]
    assert not any(p.flip for batch in batches for p in batch)
    trained = {p.sample.name for batch in Order(dataset, 2, 0).epoch_batches(0) for p in batch}
    assert not trained & set(held_out)


def test_regularisation_is_shown_beside_the_pictures(folder, other_folder):
    spare = other_folder("spare").fill(3)
    dataset = folder.fill(6).scan(regularisation=str(spare.path))
    picks = [p for batch in Order(dataset, 4, 0).epoch_batches(0) for p in batch]
    assert Counter(p.sample.regularisation for p in picks) == {True: 6, False: 6}


def test_a_mirrored_cut_is_told_where_it_lies_in_the_mirrored_picture(folder, tmp_path):
    """As kohya's tools tell SDXL."""
    folder.add("a.png", (160, 64), "x")
    dataset = folder.scan(crop="random", flip=0.5, crop_places=8)
    model = SimpleNamespace(autoencoder="", encode_pictures=lambda pictures: pictures[:, :1])
    feed = PictureFeed(model, dataset, 1, 0, tmp_path / "cache", encodes_captions=False)
    flips = set()
    for number in range(12):
        (pick,) = feed.picks(number)
        room, _ = pick.sample.fit.room
        ((_, left),) = [size.crop for size in feed.load([pick], [(number, 0)]).sizes]
        assert left == (room - pick.crop[0] if pick.flip else pick.crop[0])
        flips.add(pick.flip)
    assert flips == {True, False}
