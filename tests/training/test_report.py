"""Tables, text, the preview sheet, and the facts for the metadata."""

import json

import pytest
import torch
from PIL import Image

from lora_workbench.training.dataset.facts import dataset_facts, tag_frequency
from lora_workbench.training.dataset.order import Order
from lora_workbench.training.dataset.problems import HINTS
from lora_workbench.training.dataset.report import bucket_rows, picture_rows, report
from lora_workbench.training.dataset.sheet import preview_sheet, sheet_tensor


@pytest.fixture
def mixed(folder, other_folder):
    for number in range(5):
        folder.add(f"2_sks/{number}.png", (64, 64), f"SKS, dog, {number}")
    folder.add("1_wide/w.png", (128, 64), "grass, dog")
    other_folder("spare").add("3_dog/r.png", (64, 64))
    return folder


def test_the_table_counts_what_the_order_shows(mixed, tmp_path):
    dataset = mixed.scan(regularisation=str(tmp_path / "spare"))
    order = Order(dataset, 4, seed=0)
    batches = order.epoch_batches(0)
    rows = bucket_rows(dataset, 4)
    assert [row.bucket for row in rows] == [(64, 64), (88, 40)]
    for row in rows:
        own = [batch for batch in batches if batch[0].sample.fit.bucket == row.bucket]
        assert row.batches == len(own)
        assert row.last == min(map(len, own))
        assert row.picks == sum(map(len, own))
    assert sum(row.batches for row in rows) == order.batches_per_epoch


def test_a_bucket_of_validation_alone_has_a_row(folder, other_folder):
    folder.fill(2)
    held_out = other_folder("held")
    held_out.add("v.png", (128, 64), "x")
    rows = bucket_rows(folder.scan(validation_folder=str(held_out.path)), 2)
    assert rows[1] == ((88, 40), 0, 0, 40 / 44, 0, 0, 1)


def test_every_picture_has_a_row(mixed):
    rows = picture_rows(mixed.scan())
    assert rows[0][:5] == ("1_wide/w.png", (128, 64), (88, 40), (88, 44), 40 / 44)
    assert [row.name for row in rows[1:]] == [f"2_sks/{number}.png" for number in range(5)]


def test_the_report_worked_example(mixed, tmp_path):
    mixed.add("x.png")
    text = report(mixed.scan(regularisation=str(tmp_path / "spare")), 4)
    assert text.splitlines() == [
        "7 pictures, shown 12 times in an epoch",
        "1 regularisation pictures, shown 12 times in an epoch",
        "",
        "     bucket  pictures   shown  kept  batches  shortest batch",
        "      64x64         7      23  100%        6  3 of 4",
        "      88x40         1       1   91%        1  1 of 4",
        "",
        "no caption file: 2 (the default caption is used)",
        "  x.png: no words",
        "  regularisation/3_dog/r.png: dog",
    ]


def test_the_report_is_short_however_many_problems_there_are(folder):
    for number in range(40):
        folder.add(f"{number:02d}.png", (8, 8))
    text = report(folder.scan())
    assert "and 35 more" in text
    assert len(text.splitlines()) < 30


def test_every_problem_has_a_kind_that_is_explained(mixed):
    assert all(problem.kind in HINTS for problem in mixed.scan().problems)


class TestSheet:
    def test_its_form(self, mixed):
        sheet = sheet_tensor(mixed.scan())
        assert sheet.shape[0] == 1
        assert sheet.shape[2:] == (1024, 3)
        assert sheet.dtype == torch.float32
        assert 0 <= sheet.min() < sheet.max() <= 1

    def test_pictures_with_problems_are_framed(self, folder):
        folder.add("a.png", caption="x", image=Image.new("RGB", (64, 64), "blue"))
        plain = preview_sheet(folder.scan())
        (folder.path / "a.txt").unlink()
        marked = preview_sheet(folder.scan())
        red = (196, 48, 32)
        counts = [{c: n for n, c in s.getcolors(1 << 20)}.get(red, 0) for s in (plain, marked)]
        assert counts[0] == 0
        assert counts[1] > 1800  # 4 sides of about 160 by 3 pixels; the words alone are fewer

    def test_more_pictures_do_not_make_it_longer(self, folder):
        folder.fill(6)
        before = preview_sheet(folder.scan()).height
        folder.fill(30)
        assert preview_sheet(folder.scan()).height == before

    def test_many_buckets_are_bounded(self, folder):
        """The 24 first of equally many pictures are shown, however many there are."""
        heights = []
        for count in (24, 30, 40):
            for number in range(count):
                folder.add(f"{number}.png", (128 + 8 * number, 128), "x")
            dataset = folder.scan(upscale=False, resolution=512)
            assert len(bucket_rows(dataset)) == count
            heights.append(preview_sheet(dataset).height)
        assert heights[0] < heights[1] == heights[2] < heights[0] + 50

    def test_long_words_and_no_words_fit(self, folder):
        folder.add("a.png", caption="w" * 5000)
        folder.add("b.png", caption="")
        folder.add("c.png", caption="犬の写真 " * 100)
        assert preview_sheet(folder.scan()).width == 1024


class TestFacts:
    def test_tags_worked_example(self, mixed, tmp_path):
        dataset = mixed.scan(regularisation=str(tmp_path / "spare"))
        assert tag_frequency(dataset) == {
            "1_wide": {"dog": 1, "grass": 1},
            "2_sks": {"dog": 5, "sks": 5, "0": 1, "1": 1, "2": 1, "3": 1, "4": 1},
        }

    def test_counts_and_folders_worked_example(self, mixed, tmp_path):
        facts = dataset_facts(mixed.scan(regularisation=str(tmp_path / "spare")), 4)
        assert facts["ss_dataset_dirs"] == {
            "1_wide": {"n_repeats": 1, "img_count": 1},
            "2_sks": {"n_repeats": 2, "img_count": 5},
        }
        assert facts["ss_reg_dataset_dirs"] == {"3_dog": {"n_repeats": 11, "img_count": 1}}
        assert facts["ss_num_train_images"] == facts["ss_num_reg_images"] == 11
        assert facts["ss_resolution"] == "(64, 64)"
        assert facts["ss_num_batches_per_epoch"] == 7
        info = facts["ss_bucket_info"]
        assert info["buckets"] == {
            "0": {"resolution": [64, 64], "count": 21},
            "1": {"resolution": [88, 40], "count": 1},
        }
        assert info["mean_img_ar_error"] == pytest.approx(abs(128 / 64 - 88 / 40) / 7)

    def test_they_are_json_without_a_path(self, mixed, tmp_path):
        options = {"regularisation": str(tmp_path / "spare"), "validation": 0.3}
        text = json.dumps(dataset_facts(mixed.scan(**options), 4), allow_nan=False)
        assert str(tmp_path) not in text
        (one,) = json.loads(text)["ss_datasets"]
        assert [s["is_reg"] for s in one["subsets"]] == [False, False, True]
