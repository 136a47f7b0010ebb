"""The cache: never stale, never torn, never half read."""

import threading
from dataclasses import replace

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.dataset.cache import Cache, latents_key, mask_key, text_key
from lora_workbench.training.dataset.order import Order, Pick, center_crop
from lora_workbench.training.dataset.pictures import mask_tensor, picture_tensor

from .conftest import noise


class Encoder:
    """Stands for an autoencoder: counts its work, its result tells pictures apart."""

    def __init__(self, name="vae"):
        self.name, self.runs = name, 0

    def latents(self, cache, pick):
        def build():
            self.runs += 1
            return {"mean": picture_tensor(pick)[:, ::8, ::8], "log_variance": torch.zeros(4)}

        return cache.get(latents_key(pick, self.name, torch.float32), build)["mean"]


def pick_of(dataset, number=0, **changes):
    sample = dataset.samples[number]
    return replace(Pick(sample, 0, 0, False, center_crop(sample)), **changes)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def test_the_second_time_is_the_first_ones_bits(cache):
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(4), "c": torch.randn(2).to(torch.bfloat16)}
    first = cache.get("ab12", lambda: tensors)
    again = Cache(cache.folder).get("ab12", lambda: pytest.fail("built again"))
    assert cache.built == 1
    for name, tensor in tensors.items():
        for found in (first, again):
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_views_and_gradients_are_kept_as_plain_tensors(cache):
    tensor = torch.randn(4, 6, requires_grad=True)
    found = cache.get("ab12", lambda: {"x": tensor.T[::2]})["x"]
    assert not found.requires_grad
    assert torch.equal(Cache(cache.folder).get("ab12", dict)["x"], tensor.detach().T[::2])


class TestNothingIsStale:
    """What is changed, by name, has fresh latents; what is not, is read from disk."""

    @pytest.fixture
    def encoder(self, cache, folder):
        folder.add("a.png", (100, 64), "x")
        encoder = Encoder()
        self.before = encoder.latents(cache, pick_of(folder.scan()))
        encoder.latents(cache, pick_of(folder.scan()))
        assert encoder.runs == 1
        return encoder

    def test_an_edited_picture(self, cache, folder, encoder):
        folder.add("a.png", image=noise((100, 64), 5))
        pick = pick_of(folder.scan())
        found = encoder.latents(cache, pick)
        assert encoder.runs == 2
        assert torch.equal(found, picture_tensor(pick)[:, ::8, ::8])
        assert not torch.equal(found, self.before)

    def test_a_picture_edited_between_scan_and_training(self, cache, folder, encoder):
        """The old key must not get the new pixels."""
        folder.add("a.png", image=noise((100, 64), 5))
        fresh = pick_of(folder.scan(), crop=(1, 0))
        folder.add("a.png", image=noise((100, 64), 6))
        with pytest.raises(LoraError, match="changed after"):
            encoder.latents(cache, fresh)
        assert not cache.has(latents_key(fresh, "vae", torch.float32))

    def test_another_autoencoder(self, cache, folder, encoder):
        encoder.name = "another"
        encoder.latents(cache, pick_of(folder.scan()))
        assert encoder.runs == 2

    @pytest.mark.parametrize(
        "options",
        [{"resolution": 128}, {"bucket_step": 64}, {"buckets": False, "bucket_step": 64}],
        ids=str,
    )
    def test_another_size(self, cache, folder, encoder, options):
        pick = pick_of(folder.scan(**options))
        found = encoder.latents(cache, pick)
        assert encoder.runs == 2
        assert torch.equal(found, picture_tensor(pick)[:, ::8, ::8])

    def test_another_size_cut_at_the_same_place(self, cache, folder, encoder):
        folder.add("a.png", (64, 64), "x")
        picks = [pick_of(folder.scan(resolution=side)) for side in (64, 128)]
        assert picks[0].crop == picks[1].crop == (0, 0)
        assert [encoder.latents(cache, pick).shape[-1] for pick in picks] == [8, 16]

    def test_the_same_size_by_other_options_is_found_again(self, cache, folder, encoder):
        encoder.latents(cache, pick_of(folder.scan(bucket_max=128)))
        assert encoder.runs == 1

    @pytest.mark.parametrize("changes", [{"flip": True}, {"crop": (1, 0)}], ids=str)
    def test_mirrored_and_cut_otherwise(self, cache, folder, encoder, changes):
        pick = pick_of(folder.scan(), **changes)
        found = encoder.latents(cache, pick)
        assert encoder.runs == 2
        assert torch.equal(found, picture_tensor(pick)[:, ::8, ::8])

    def test_another_dtype(self, folder, encoder):
        pick = pick_of(folder.scan())
        keys = {latents_key(pick, "vae", dtype) for dtype in (torch.float32, torch.float16)}
        assert len(keys) == 2

    def test_a_renamed_picture_and_another_caption_are_found_again(self, cache, folder, encoder):
        (folder.path / "a.png").rename(folder.path / "b.png")
        (folder.path / "b.txt").write_text("told otherwise")
        encoder.latents(cache, pick_of(folder.scan()))
        assert encoder.runs == 1


def test_every_input_of_a_texts_key_counts():
    told = [
        text_key("a dog", "clip", torch.float32, clip_skip=1),
        text_key("a cat", "clip", torch.float32, clip_skip=1),
        text_key("a dog", "other", torch.float32, clip_skip=1),
        text_key("a dog", "clip", torch.float16, clip_skip=1),
        text_key("a dog", "clip", torch.float32, clip_skip=2),
        text_key("a dog", "clip", torch.float32, clip_skip=1, max_length=225),
        text_key("a dog", "clip", torch.float32),
    ]
    assert len(set(told)) == len(told)
    assert told[0] == text_key("a dog", "clip", torch.float32, clip_skip=1)


def test_every_input_of_a_masks_key_counts(folder, other_folder):
    folder.add("a.png", caption="x", image=noise((100, 64), 1, 4))
    masks = other_folder("masks")
    masks.add("a.png", (100, 64))
    by_folder = {"masks": "folder", "mask_folder": str(masks.path)}
    before = folder.scan(**by_folder)
    masks.add("a.png", image=noise((100, 64), 4))
    picks = [
        *(pick_of(d) for d in (before, folder.scan(**by_folder), folder.scan(masks="alpha"))),
        *(pick_of(before, **c) for c in ({"flip": True}, {"crop": (1, 0)})),
    ]
    keys = [mask_key(p, f, s) for p in picks for f in (0.0, 0.5) for s in (8, 16)]
    assert len(set(keys)) == len(keys)


def test_a_mask_by_brightness_is_not_that_by_opacity(folder, other_folder):
    """A folder of masks may hold the very file of the picture."""
    image = noise((64, 64), 1, 4)
    folder.add("a.png", caption="x", image=image)
    masks = other_folder("masks")
    masks.add("a.png", image=image)
    one = pick_of(folder.scan(masks="folder", mask_folder=str(masks.path)))
    other = pick_of(folder.scan(masks="alpha"))
    assert one.sample.mask_sha256 == other.sample.mask_sha256
    assert not torch.equal(mask_tensor(one), mask_tensor(other))
    assert mask_key(one) != mask_key(other)


class TestDamage:
    @pytest.fixture
    def file(self, cache):
        cache.get("ab12", lambda: {"x": torch.arange(100.0)})
        (path,) = cache.folder.rglob("*.safetensors")
        return path

    @pytest.mark.parametrize("harm", ["cut", "empty", "header", "data", "junk", "foreign"])
    def test_a_damaged_file_is_made_anew(self, cache, file, harm):
        data = file.read_bytes()
        flipped = bytearray(data)
        flipped[{"header": 12}.get(harm, len(data) - 5)] ^= 1
        harmed = {
            "cut": data[:-40],
            "empty": b"",
            "junk": b"x" * 500,
            "foreign": data.replace(b"sha256", b"sha255"),
        }.get(harm, bytes(flipped))
        file.write_bytes(harmed)
        later = Cache(cache.folder)
        found = later.get("ab12", lambda: {"x": torch.arange(100.0)})
        assert torch.equal(found["x"], torch.arange(100.0))
        assert (later.built, later.damaged) == (1, [file])
        assert file.read_bytes() == data

    def test_an_interrupted_build_leaves_nothing(self, cache):
        def build():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cache.get("ab12", build)
        assert not cache.has("ab12")
        assert list(cache.folder.rglob("*.*")) == []

    def test_nan_is_never_kept(self, cache):
        with pytest.raises(LoraError, match="NaN or infinity"):
            cache.get("ab12", lambda: {"x": torch.tensor([1.0, float("nan")])})
        assert not cache.has("ab12")


def test_threads_that_build_the_same_agree(cache):
    found = []

    def work():
        found.append(cache.get("ab12", lambda: {"x": torch.arange(1000.0)})["x"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(tensor, torch.arange(1000.0)) for tensor in found)
    assert len(list(cache.folder.rglob("*"))) == 2  # a folder and a file, nothing temporary


def test_random_crops_fill_a_bounded_cache(cache, folder):
    """All that ten epochs show of a picture is 3 places, each mirrored or not."""
    folder.add("a.png", (200, 64), "x")
    options = {"buckets": False, "bucket_step": 64, "crop": "random", "crop_places": 3}
    dataset = folder.scan(**options, flip=0.5, repeats=10)
    order, encoder = Order(dataset, 5, seed=0), Encoder()
    for number in range(10 * order.batches_per_epoch):
        for pick in order.batch_at(number):
            encoder.latents(cache, pick)
    assert encoder.runs <= 6


def test_masks_come_back_from_disk(cache, folder):
    folder.add("a.png", caption="x", image=noise((64, 64), 1, 4))
    pick = pick_of(folder.scan(masks="alpha"))
    for _ in range(2):
        found = cache.get(mask_key(pick), lambda: {"mask": mask_tensor(pick)})["mask"]
        assert torch.equal(found, mask_tensor(pick))
    assert cache.built == 1
