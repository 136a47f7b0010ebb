"""Pixels and masks of a pick, against Pillow and numpy by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.dataset.order import Pick, center_crop
from lora_workbench.training.dataset.pictures import mask_tensor, picture, picture_tensor

from .conftest import noise


def pick_of(dataset, number=0, **changes):
    sample = dataset.samples[number]
    return replace(Pick(sample, 0, 0, False, center_crop(sample)), **changes)


def test_a_picture_of_its_buckets_size_is_untouched(folder):
    image = noise((72, 56), 1)
    folder.add("a.png", caption="x", image=image)
    tensor = picture_tensor(pick_of(folder.scan()))
    assert tensor.shape == (3, 56, 72)
    assert tensor.dtype == torch.float32
    expected = np.asarray(image).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6)
    assert tensor.min() >= -1
    assert tensor.max() <= 1


def test_black_and_white_are_minus_one_and_one(folder):
    for name, colour in (("a.png", "black"), ("b.png", "white")):
        folder.add(name, caption="x", image=Image.new("RGB", (64, 64), colour))
    found = folder.scan()
    assert picture_tensor(pick_of(found, 0)).unique().tolist() == [-1.0]
    assert picture_tensor(pick_of(found, 1)).unique().tolist() == [1.0]


def test_resize_then_cut_then_mirror(folder):
    image = noise((200, 100), 2)
    folder.add("a.png", caption="x", image=image)
    found = folder.scan(buckets=False, bucket_step=64)
    pick = pick_of(found, crop=(10, 0), flip=True)
    resized = image.resize((128, 64), Image.Resampling.LANCZOS)
    expected = np.asarray(resized)[:, 10:74][:, ::-1]
    np.testing.assert_array_equal(np.asarray(picture(pick)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_pixels(folder, orientation):
    """The red corner is where a viewer shows it."""
    image = Image.new("RGB", (96, 64), "white")
    image.paste((255, 0, 0), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder.add("a.png", caption="x", image=image, exif=exif)
    pick = pick_of(folder.scan(upscale=False))
    found = np.asarray(picture(pick))
    corners = [found[y, x, 1] < 128 for y in (4, -5) for x in (4, -5)]
    # Top left, top right, bottom left, bottom right.
    where = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
    assert corners == [place == where for place in range(4)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_mode_shows_its_colour(folder, mode):
    grey = 200
    if mode == "I;16":
        image = Image.fromarray(np.full((64, 64), grey * 257, np.uint16))
    else:
        image = Image.new("RGB", (64, 64), (grey,) * 3).convert(mode)
    folder.add("a.tif" if mode == "CMYK" else "a.png", caption="x", image=image)
    pixels = np.asarray(picture(pick_of(folder.scan())))
    assert abs(pixels.mean() - grey) < (60 if mode == "1" else 3)


def test_transparent_parts_are_white(folder):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((10, 20, 30, 255), (0, 0, 32, 64))
    folder.add("a.png", caption="x", image=image)
    palette = Image.new("P", (64, 64))
    palette.putpalette([9, 9, 9])
    folder.add("b.png", caption="x", image=palette, transparency=0)
    found = folder.scan()
    pixels = np.asarray(picture(pick_of(found)))
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[0, 63].tolist() == [255, 255, 255]
    assert np.asarray(picture(pick_of(found, 1)))[0, 0].tolist() == [255, 255, 255]


class TestMasks:
    def test_ones_without_a_mask(self, folder):
        folder.add("a.png", (64, 64), "x")
        assert torch.equal(mask_tensor(pick_of(folder.scan())), torch.ones(1, 8, 8))

    def test_opacity_worked_example(self, folder):
        """The left 36 of 64 columns are opaque: 4 latents wholly, one by half."""
        image = Image.new("RGBA", (64, 64), (9, 9, 9, 0))
        image.paste((9, 9, 9, 255), (0, 0, 36, 64))
        folder.add("a.png", caption="x", image=image)
        mask = mask_tensor(pick_of(folder.scan(masks="alpha")))
        assert mask.shape == (1, 8, 8)
        assert mask[0, 3].tolist() == [1, 1, 1, 1, 0.5, 0, 0, 0]
        flipped = mask_tensor(pick_of(folder.scan(masks="alpha"), flip=True), floor=0.2)
        torch.testing.assert_close(flipped, 0.2 + 0.8 * mask.flip(-1))

    def test_a_mask_of_another_size_is_cut_like_its_picture(self, folder, other_folder):
        folder.add("a.png", (256, 128), "x")
        masks = other_folder("masks")
        white_left = Image.new("L", (64, 32), 0)
        white_left.paste(255, (0, 0, 32, 32))
        masks.add("a.png", image=white_left)
        options = {"masks": "folder", "mask_folder": str(masks.path), "buckets": False}
        found = folder.scan(**options, bucket_step=64)
        mask = mask_tensor(pick_of(found, crop=(0, 0)))
        assert mask.mean() > 0.97  # all of the left half
        assert mask_tensor(pick_of(found, crop=(64, 0))).mean() < 0.03
        middle = mask_tensor(pick_of(found))
        assert middle[0, :, :3].min() > 0.95
        assert middle[0, :, 5:].max() < 0.05


class TestChangedFiles:
    def test_a_picture_edited_after_the_scan_is_an_error(self, folder):
        path = folder.add("a.png", (64, 64), "x")
        pick = pick_of(folder.scan())
        folder.add("a.png", image=noise((64, 64), 9))
        with pytest.raises(LoraError, match="changed after") as error:
            picture_tensor(pick)
        assert error.value.facts["picture"] == path

    def test_a_picture_deleted_after_the_scan_is_an_error(self, folder):
        path = folder.add("a.png", (64, 64), "x")
        pick = pick_of(folder.scan())
        path.unlink()
        with pytest.raises(LoraError, match="cannot be read any more"):
            picture_tensor(pick)

    def test_a_mask_edited_after_the_scan_is_an_error(self, folder, other_folder):
        folder.add("a.png", (64, 64), "x")
        masks = other_folder("masks")
        masks.add("a.png")
        pick = pick_of(folder.scan(masks="folder", mask_folder=str(masks.path)))
        masks.add("a.png", image=noise((64, 64), 9))
        with pytest.raises(LoraError, match="changed after"):
            mask_tensor(pick)
