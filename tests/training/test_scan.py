"""What a scan finds in a folder, and what it makes of damage."""

import codecs
import hashlib
import os
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image, features

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.dataset import listing, look
from lora_workbench.training.dataset.scan import scan

from .conftest import kinds, noise


def by_name(dataset):
    return {sample.name: sample for sample in (*dataset.samples, *dataset.validation)}


def test_a_sample_worked_example(folder):
    path = folder.add("10_sks dog/b.png", (96, 64), "a dog on grass")
    folder.add("a.jpg", (64, 64), "a cat")
    dataset = folder.scan(repeats=2)
    assert [s.name for s in dataset.samples] == ["10_sks dog/b.png", "a.jpg"]
    dog, cat = dataset.samples
    assert dog.path == path
    assert dog.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (dog.size, dog.caption, dog.repeats, dog.group) == (
        *((96, 64), "a dog on grass", 20, "10_sks dog"),
    )
    assert dog.fit.bucket == (80, 48)  # 96:64 among 80x48, 72x56, 88x40, ... of at most 4096
    assert cat.repeats == 2
    assert dataset.picks_per_epoch == 22
    assert dataset.problems == ()


def test_the_order_is_that_of_the_names_whatever_the_disk_says(folder, monkeypatch):
    for name in ("b.png", "a.png", "sub/c.png", "B.png", "sub/a.png"):
        folder.add(name, caption="x")
    real = os.walk
    for order in (sorted, lambda names: sorted(names, reverse=True)):
        monkeypatch.setattr(listing.os, "walk", partial(_walk, real, order))
        names = [sample.name for sample in folder.scan().samples]
        assert names == ["B.png", "a.png", "b.png", "sub/a.png", "sub/c.png"]


def _walk(real, order, top, **options):
    for at, folders, files in real(top, **options):
        yield at, folders, order(files)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_size(folder, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder.add(f"a.{ending}", (96, 64), "x", exif=exif)
    turned = orientation >= 5
    assert folder.scan().samples[0].size == ((64, 96) if turned else (96, 64))


def test_each_file_is_opened_once(folder, monkeypatch):
    folder.fill(5)
    opened, real = [], Image.open
    monkeypatch.setattr(look.Image, "open", lambda data: opened.append(data) or real(data))
    folder.scan()
    assert len(opened) == 5


def test_progress_counts_to_the_end(folder):
    folder.fill(4)
    told = []
    scan(folder.settings(), lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_interrupt_ends_a_scan_soon(folder, monkeypatch):
    folder.fill(100)
    begun, real = [], look.look_at
    monkeypatch.setattr(look, "look_at", lambda path: begun.append(path) or real(path))

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(folder.settings(), stop)
    assert len(begun) < 50


class TestCaptions:
    def test_without_a_file_the_folders_words_or_the_default(self, folder):
        folder.add("3_sks dog/a.png")
        folder.add("b.png")
        found = folder.scan()
        assert [s.caption for s in found.samples] == ["sks dog", ""]
        assert kinds(found)["no caption file"] == ["3_sks dog/a.png", "b.png"]
        assert [s.caption for s in folder.scan(default_caption="art").samples] == ["art", "art"]

    def test_an_empty_file_is_an_empty_caption(self, folder):
        folder.add("a.png", caption=" \n")
        found = folder.scan(default_caption="art")
        assert found.samples[0].caption == ""
        assert kinds(found) == {"empty caption": ["a.png"]}

    @pytest.mark.parametrize(
        ("data", "reads"),
        [
            ("ä dog".encode(), "ä dog"),
            (codecs.BOM_UTF8 + "ä dog".encode(), "ä dog"),
            ("ä dog".encode("utf-16"), "ä dog"),
            (codecs.BOM_UTF16_BE + "ä dog".encode("utf-16-be"), "ä dog"),
            (b"a dog,\r\n  on  grass\r\n", "a dog, on grass"),
        ],
    )
    def test_encodings_that_are_certain(self, folder, data, reads):
        folder.add("a.png").with_suffix(".txt").write_bytes(data)
        assert folder.scan().samples[0].caption == reads

    @pytest.mark.parametrize("encoding", ["cp1252", "shift-jis", "utf-16-le"])
    def test_encodings_that_are_guesses_are_errors_with_all_names(self, folder, encoding):
        text = {"cp1252": "café", "shift-jis": "犬の写真", "utf-16-le": "a dog"}[encoding]
        for name in ("a.png", "b.png"):
            path = folder.add(name).with_suffix(".txt")
            path.write_bytes(text.encode(encoding))
        folder.add("c.png", caption="fine")
        with pytest.raises(LoraError) as error:
            folder.scan()
        assert error.value.headline == "2 caption files are not UTF-8."
        assert set(error.value.facts) == {"a.txt", "b.txt"}

    def test_one_caption_of_two_pictures_is_told(self, folder):
        folder.add("a.png", caption="x")
        folder.add("a.jpg")
        found = folder.scan()
        assert [s.caption for s in found.samples] == ["x", "x"]
        assert kinds(found) == {"shared caption": ["a.txt"]}

    def test_another_extension(self, folder):
        folder.add("a.png").with_suffix(".caption").write_text("told")
        assert folder.scan(caption_extension=".caption").samples[0].caption == "told"


class TestFiles:
    def test_what_is_not_a_picture_is_listed_or_hidden(self, folder):
        folder.add("a.png", caption="x")
        folder.add(".ipynb_checkpoints/a-checkpoint.png")
        (folder.path / ".DS_Store").write_bytes(b"x")
        (folder.path / "notes.json").write_text("{}")
        (folder.path / "gone.txt").write_text("of no picture")
        found = folder.scan()
        assert [s.name for s in found.samples] == ["a.png"]
        assert kinds(found) == {
            "caption without a picture": ["gone.txt"],
            "other file": ["notes.json"],
        }

    def test_the_innermost_number_counts(self, folder):
        folder.add("2_animals/5_dog/a.png")
        folder.add("2_animals/more/b.png")
        found = folder.scan().samples
        assert [(s.repeats, s.caption) for s in found] == [(5, "dog"), (2, "animals")]

    def test_a_folder_named_0_is_not_shown(self, folder):
        folder.add("0_off/a.png")
        folder.add("b.png", caption="x")
        found = folder.scan()
        assert [s.name for s in found.samples] == ["b.png"]
        assert kinds(found) == {"shown 0 times": ["0_off/a.png"]}

    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tif"])
    def test_damaged_pictures_are_left_out_with_the_reason(self, folder, name):
        folder.add("good.png", caption="x")
        whole = folder.add(name, (200, 200)).read_bytes()
        damaged = [whole[: len(whole) // 2], b"", b"no picture", whole[:30]]
        for number, data in enumerate(damaged):
            (folder.path / name).with_stem(f"bad{number}").write_bytes(data)
        (folder.path / name).unlink()
        found = folder.scan()
        assert [s.name for s in found.samples] == ["good.png"]
        listed = {p.kind: p.items for p in found.problems}["unreadable picture"]
        assert len(listed) == len(damaged)
        assert all(reason for _, reason in listed)

    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "a.bmp"])
    def test_no_damage_ends_a_scan(self, folder, name):
        """Bytes changed at random places are a picture, or a reason; never another exception."""
        whole = folder.add(name, (40, 40)).read_bytes()
        draw = np.random.default_rng(0)
        for number in range(60):
            data = bytearray(whole)
            for place in draw.integers(0, min(len(data), 300), 4):
                data[place] = draw.integers(256)
            (folder.path / name).with_stem(f"bad{number:02d}").write_bytes(data)
        found = folder.scan()
        listed = {p.kind: p.items for p in found.problems}.get("unreadable picture", ())
        assert len(found.samples) + len(listed) == 61

    @pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
    def test_damage_that_one_decoder_has_its_own_exception_for(self, folder):
        folder.add("good.png", caption="x")
        path = folder.add("a.avif", (40, 40), "x")
        path.write_bytes(path.read_bytes().replace(b"iloc", b"xxxx"))
        assert kinds(folder.scan())["unreadable picture"] == ["a.avif"]

    def test_modes_and_frames_are_told(self, folder):
        grey = np.full((64, 64), 40000, np.uint16)
        folder.add("16.png", caption="x", image=Image.fromarray(grey))
        folder.add("cmyk.jpg", caption="x", image=noise((64, 64), 1).convert("CMYK"))
        folder.add("p.png", caption="x", image=noise((64, 64), 2).convert("P"))
        frames = [noise((64, 64), 3 + n) for n in range(3)]
        folder.add("z.webp", caption="x", image=frames[0], save_all=True, append_images=frames[1:])
        found = folder.scan()
        assert kinds(found) == {
            "converted": ["16.png", "cmyk.jpg", "p.png"],
            "animated": ["z.webp"],
        }
        assert len(found.samples) == 4

    def test_a_cameras_jpeg_with_a_preview_is_no_animation(self, folder):
        whole, preview = noise((64, 64), 1), noise((32, 32), 2)
        options = {"format": "MPO", "save_all": True, "append_images": [preview]}
        path = folder.add("a.jpg", caption="x", image=whole, **options)
        with Image.open(path) as image:
            assert image.n_frames == 2
        assert kinds(folder.scan()) == {}

    def test_an_empty_folder_is_an_error_that_says_what_is_there(self, folder):
        (folder.path / "a.txt").write_text("x")
        (folder.path / "bad.png").write_bytes(b"x")
        with pytest.raises(LoraError) as error:
            folder.scan()
        assert error.value.facts["bad.png"] == "no picture of a known kind"
        assert error.value.facts["other files"] == 1

    def test_a_missing_folder_is_an_error(self, tmp_path, folder):
        with pytest.raises(LoraError, match=re.escape("nowhere")):
            scan(type(folder.settings())(str(tmp_path / "nowhere")))


class TestLikeness:
    def test_equal_files(self, folder):
        data = folder.add("a.png", caption="x").read_bytes()
        (folder.path / "b.png").write_bytes(data)
        (folder.path / "b.txt").write_text("y")
        found = folder.scan()
        assert len(found.samples) == 2
        assert kinds(found) == {"same file": ["b.png"]}

    def test_the_same_picture_smaller_and_as_jpeg_is_near(self, folder):
        smooth = noise((8, 8), 5).resize((256, 256), Image.Resampling.BICUBIC)
        folder.add("a.png", caption="x", image=smooth)
        folder.add("b.jpg", caption="x", image=smooth.resize((128, 128)), quality=75)
        other = noise((8, 8), 6).resize((256, 256), Image.Resampling.BICUBIC)
        folder.add("c.png", caption="x", image=other)
        assert kinds(folder.scan()) == {"nearly the same picture": ["b.jpg"]}

    def test_pictures_on_white_are_not_near(self, folder):
        for number in range(4):
            image = Image.new("RGB", (64, 64), "white")
            image.paste((200, 30, 30), (8 * number, 8, 8 * number + 12, 24))
            folder.add(f"{number}.png", caption="x", image=image)
        assert kinds(folder.scan()) == {}


def test_small_and_long_pictures_are_told(folder):
    folder.add("small.png", (20, 20), "x")
    folder.add("long.png", (640, 64), "x")
    found = folder.scan()
    assert kinds(found) == {"enlarged": ["small.png"], "much cut off": ["long.png"]}


class TestValidation:
    def test_the_split_does_not_change_when_pictures_are_added(self, folder):
        folder.fill(60)
        before = {s.name for s in folder.scan(validation=0.3).validation}
        for number in range(30):
            folder.add(f"{number:03d}-more.png", caption="x", image=noise((64, 64), 5000 + number))
        after = {s.name for s in folder.scan(validation=0.3).validation}
        assert before == {name for name in after if "more" not in name}
        assert 8 <= len(before) <= 28
        another = {s.name for s in folder.scan(validation=0.3, validation_seed=1).validation}
        assert another != after

    def test_nothing_is_in_both_and_equal_files_stay_together(self, folder):
        folder.fill(20)
        for path in list(folder.path.glob("*.png")):
            path.with_stem(path.stem + "-copy").write_bytes(path.read_bytes())
        found = folder.scan(validation=0.5)
        trained, held_out = (
            {sample.sha256 for sample in samples} for samples in (found.samples, found.validation)
        )
        assert trained and held_out and not trained & held_out
        assert len(found.samples) + len(found.validation) == 40

    def test_a_small_share_of_few_takes_one(self, folder):
        found = folder.fill(3).scan(validation=0.001)
        assert len(found.validation) == 1
        assert "validation share" in kinds(found)

    def test_all_held_out_is_an_error(self, folder):
        with pytest.raises(LoraError, match="held out"):
            folder.fill(1).scan(validation=0.5)

    def test_a_folder_of_its_own(self, folder, other_folder):
        folder.fill(2)
        held_out = other_folder("held")
        held_out.add("v.png", caption="x")
        held_out.add("5_w/leak.png", caption="x", image=Image.open(folder.path / "000.png"))
        found = folder.scan(validation_folder=str(held_out.path))
        assert [s.name for s in found.validation] == ["validation/5_w/leak.png", "validation/v.png"]
        assert kinds(found)["in training and validation"] == ["validation/5_w/leak.png"]


class TestRegularisation:
    def test_it_is_shown_as_often_as_the_pictures(self, folder, other_folder):
        folder.fill(10)
        spare = other_folder("spare")
        for number in range(3):
            spare.add(f"1_dog/{number}.png")
        found = folder.scan(regularisation=str(spare.path), regularisation_weight=0.5, repeats=2)
        kept = [s for s in found.samples if s.regularisation]
        assert [s.repeats for s in kept] == [7, 7, 6]
        assert {(s.weight, s.caption) for s in kept} == {(0.5, "dog")}
        assert {s.weight for s in found.samples if not s.regularisation} == {1.0}

    def test_none_is_left_out_when_there_are_more(self, folder, other_folder):
        folder.fill(2)
        spare = other_folder("spare").fill(5)
        found = folder.scan(regularisation=str(spare.path))
        assert [s.repeats for s in found.samples if s.regularisation] == [1] * 5

    def test_a_folder_inside_is_not_trained_too(self, folder, other_folder):
        folder.fill(2)
        other_folder("pictures/reg").add("r.png")
        found = folder.scan(regularisation=str(folder.path / "reg"), regularisation_caption="a dog")
        assert [s.name for s in found.samples] == ["000.png", "001.png", "regularisation/r.png"]
        assert found.samples[-1].caption == "a dog"


class TestMasks:
    def test_by_opacity(self, folder):
        folder.add("a.png", caption="x", image=noise((64, 64), 1, 4))
        folder.add("b.png", caption="x")
        found = folder.scan(masks="alpha")
        assert [bool(s.mask) for s in found.samples] == [True, False]
        assert kinds(found) == {"no mask": ["b.png"]}

    def test_from_a_folder(self, folder, other_folder):
        folder.add("sub/a.jpg", (64, 64), "x")
        folder.add("b.png", (64, 64), "x")
        masks = other_folder("masks")
        path = masks.add("sub/a.png", (128, 64))
        found = folder.scan(masks="folder", mask_folder=str(masks.path))
        assert by_name(found)["sub/a.jpg"].mask == path
        assert kinds(found) == {"no mask": ["b.png"], "mask of another shape": ["sub/a.jpg"]}

    def test_a_damaged_mask_is_an_error(self, folder, other_folder):
        folder.add("a.jpg", caption="x")
        masks = other_folder("masks")
        (masks.path / "a.png").write_bytes(b"x")
        with pytest.raises(LoraError, match="mask cannot be read"):
            folder.scan(masks="folder", mask_folder=str(masks.path))


def test_random_crops_without_room_are_told(folder):
    folder.add("a.png", (64, 64), "x")
    assert kinds(folder.scan(crop="random")) == {"random crop": ["all pictures"]}
    folder.add("b.png", (256, 100), "x")
    assert "random crop" not in kinds(folder.scan(crop="random", buckets=False, bucket_step=64))


class TestContentKey:
    def test_it_changes_with_all_that_training_sees(self, folder, other_folder):
        folder.add("a.png", caption="x")
        folder.add("b.png", caption="y")
        seen = {folder.scan().sha256}

        def changed(dataset):
            fresh = dataset.sha256 not in seen
            seen.add(dataset.sha256)
            return fresh

        assert not changed(folder.scan())
        assert not changed(folder.scan(enlarged_note=3.0))
        assert not changed(folder.scan(resolution=[64, 64]))
        assert changed(folder.scan(resolution=128))
        assert changed(folder.scan(flip=0.5))
        assert changed(folder.scan(prefix="sks"))
        folder.add("b.png", caption="z")
        assert changed(folder.scan())
        folder.add("b.png", image=noise((64, 64), 77))
        assert changed(folder.scan())
        masks = other_folder("masks")
        masks.add("a.png")
        masked = {"masks": "folder", "mask_folder": str(masks.path)}
        assert changed(folder.scan(**masked))
        masks.add("a.png", image=noise((64, 64), 3))
        assert changed(folder.scan(**masked))

    def test_it_stays_when_the_folder_moves(self, folder):
        folder.fill(3)
        before = folder.scan().sha256
        folder.path = folder.path.rename(folder.path.with_name("elsewhere"))
        assert folder.scan().sha256 == before


def test_real_pictures(shared_data, folder):
    pixels = np.load(shared_data / "images" / "twemoji32_rgb.npz")["images"]
    for number in range(0, len(pixels), 8):
        folder.add(f"{number:04d}.png", caption="x", image=Image.fromarray(pixels[number]))
    found = folder.scan(resolution=32)
    assert len(found.samples) == len(pixels[::8])
    assert {s.fit.bucket for s in found.samples} == {(32, 32)}
    same = kinds(found).get("same file", [])
    unique = {array.tobytes() for array in pixels[::8]}
    assert len(same) == len(pixels[::8]) - len(unique)


def test_linked_folders_are_listed_and_a_circle_ends(folder, other_folder):
    folder.add("a.png", caption="x")
    other_folder("elsewhere").add("b.png", caption="y")
    (folder.path / "more").symlink_to(folder.path.parent / "elsewhere")
    (folder.path / "round").symlink_to(folder.path)
    (folder.path / "more" / "again").symlink_to(folder.path.parent / "elsewhere")
    assert [sample.name for sample in folder.scan().samples] == ["a.png", "more/b.png"]


def test_a_caption_that_cannot_be_read_is_told(folder):
    folder.add("a.png")
    (folder.path / "a.txt").symlink_to(folder.path / "gone.txt")
    with pytest.raises(LoraError, match="1 caption file cannot be read") as error:
        folder.scan()
    assert "a.txt: No such file" in str(error.value)
