"""Options that cannot be used, and options that would do nothing."""

import pytest

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.dataset.settings import DatasetSettings, check

WRONG = [
    {"folder": ""},
    {"repeats": 0},
    {"resolution": 0},
    {"resolution": 100},
    {"resolution": (512, 100)},
    {"bucket_step": 12},
    {"bucket_step": 1024},
    {"bucket_min": 1024},
    {"bucket_max": 256},
    {"crop": "middle"},
    {"masks": "white"},
    {"flip": 1.5},
    {"flip": True},
    {"caption_dropout": -0.1},
    {"tag_dropout": 2},
    {"validation": 1.0},
    {"keep_tags": -1, "shuffle_tags": True},
    {"regularisation": "r", "regularisation_weight": 0.0},
    {"enlarged_note": 0.5},
    {"caption_extension": "txt"},
    {"caption_extension": ".tags.txt"},
    {"tag_separator": " "},
    {"crop": "random", "crop_places": 0},
]

IDLE = [
    {"keep_tags": 1},
    {"crop_places": 8},
    {"buckets": False, "bucket_step": 32},
    {"buckets": False, "bucket_min": 256},
    {"buckets": False, "bucket_max": 1024},
    {"buckets": False, "upscale": False},
    {"upscale": False, "bucket_min": 256},
    {"regularisation_weight": 0.5},
    {"regularisation_caption": "a dog"},
    {"mask_folder": "m"},
    {"masks": "alpha", "mask_folder": "m"},
    {"masks": "folder"},
    {"mask_floor": 0.1},
    {"validation_seed": 1},
    {"validation": 0.1, "validation_folder": "v"},
]

FINE = [
    {},
    {"keep_tags": 1, "tag_dropout": 0.1},
    {"crop": "random", "crop_places": 8},
    {"buckets": False},
    {"resolution": (768, 512), "bucket_min": 256, "bucket_max": 1024},
    {"regularisation": "r", "regularisation_weight": 0.5, "regularisation_caption": "a dog"},
    {"masks": "folder", "mask_folder": "m", "mask_floor": 0.1},
    {"validation": 0.1, "validation_seed": 1},
    {"validation_folder": "v"},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_a_wrong_value_is_refused_by_name(options):
    with pytest.raises(LoraError) as error:
        check(DatasetSettings(**{"folder": "f", **options}))
    assert "Fix: " in str(error.value)
    assert next(iter(options)).split("_")[0] in str(error.value)


@pytest.mark.parametrize("options", IDLE, ids=str)
def test_an_option_that_does_nothing_is_refused(options):
    with pytest.raises(LoraError, match="would do nothing") as error:
        check(DatasetSettings("f", **options))
    assert error.value.headline.split()[2] in options


@pytest.mark.parametrize("options", FINE, ids=str)
def test_options_that_do_something_pass(options):
    check(DatasetSettings("f", **options))
