"""Headers: kohya's keys and the modelspec, readable, and equal for equal runs."""

import hashlib
import json
from io import BytesIO

import pytest
import torch
from safetensors.torch import save

from lora_workbench.lora_core.errors import LoraError, UnknownChoiceError
from lora_workbench.lora_core.metadata import summarize, trigger_words
from lora_workbench.training.export import TrainingFacts, metadata
from lora_workbench.training.export.hashes import hash_entries

FACTS = TrainingFacts(
    "cat style",
    "sd15",
    rank=8,
    alpha=4.0,
    resolution=(512, 768),
    steps=100,
    learning_rate=1e-4,
    tag_frequency={"10_cat": {"cat": 7, "sofa": 3}},
    sample_captions=("cat, sofa",),
    datasets=({"resolution": (512, 512), "loss": float("nan")},),
    config={"rank": 8, "limit": float("inf")},
    more={"min_snr_gamma": 5.0, "lr_scheduler": "cosine"},
)

FAMILIES = {
    ("sd15", False): ("sd_v1", "False", "stable-diffusion-v1/lora", "diffusers"),
    ("sd21", False): ("sd_v2", "True", "stable-diffusion-v2-512/lora", "diffusers"),
    ("sd21", True): ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora", "diffusers"),
    ("sdxl", False): (
        "sdxl_base_v1-0",
        "False",
        "stable-diffusion-xl-v1-base/lora",
        "https://github.com/Stability-AI/generative-models",
    ),
}


@pytest.mark.parametrize(("family", "v"), FAMILIES)
def test_the_family_is_told_in_every_readers_words(family, v):
    entries = metadata(TrainingFacts("a", family, v_prediction=v, resolution=(512, 512)))
    version, v2, architecture, implementation = FAMILIES[family, v]
    assert entries["ss_base_model_version"] == version
    assert entries["ss_v2"] == v2
    assert entries["modelspec.architecture"] == architecture
    assert entries["modelspec.implementation"] == implementation
    assert entries["modelspec.prediction_type"] == ("v" if v else "epsilon")


def test_what_the_modelspec_must_have_is_there():
    must = ("sai_model_spec", "architecture", "implementation", "title", "resolution")
    entries = metadata(FACTS)
    assert all(entries[f"modelspec.{name}"] for name in must)
    assert entries["modelspec.resolution"] == "512x768"


def test_our_own_reader_finds_the_facts():
    entries = metadata(FACTS)
    found = summarize(entries)
    assert (found["rank"], found["alpha"], found["steps"]) == ("8", "4.0", "100")
    assert trigger_words(entries) == ("cat", "sofa")


def test_json_has_no_nan():
    """Readers written in other languages stop at NaN."""

    def refuse(word):
        raise ValueError(word)

    entries = metadata(FACTS)
    texts = [text for text in entries.values() if text[:1] in "[{"]
    assert len(texts) == 4
    for text in texts:
        json.loads(text, parse_constant=refuse)
    assert json.loads(entries["lora_workbench_config"]) == {"rank": 8, "limit": None}


def test_no_clock_and_no_random_number_is_asked():
    entries = metadata(FACTS)
    assert entries == metadata(FACTS)
    assert not any(word in name for name in entries for word in ("date", "_at", "session"))


def test_unknown_names_and_numbers_without_end_are_refused():
    with pytest.raises(UnknownChoiceError, match="use 'min_snr_gamma'"):
        metadata(TrainingFacts("a", more={"min_snr_gama": 5}))
    with pytest.raises(LoraError, match="ss_learning_rate is not a finite number"):
        metadata(TrainingFacts("a", learning_rate=float("nan")))


def test_a_model_of_no_known_family_makes_no_claim():
    entries = metadata(TrainingFacts("a"))
    assert not any(name.startswith("modelspec") for name in entries)
    assert "ss_base_model_version" not in entries
    flux = metadata(TrainingFacts("a", architecture="flux-1-dev"))
    assert flux["modelspec.architecture"] == "flux-1-dev/lora"
    assert "modelspec.prediction_type" not in flux


def test_hashes_are_those_of_the_file_kohya_would_write(generator):
    """By kohya's definition, from a whole file in memory."""
    tensors = {
        "b.lora_up.weight": torch.randn(600, 700, generator=generator).half(),
        "a.alpha": torch.tensor(4.0),
        "a.lora_up.weight": torch.randn(600, 700, generator=generator).half(),
    }
    header = {"ss_seed": "1", "modelspec.title": "a"}
    file = BytesIO(save(tensors, {"ss_seed": "1"}))
    length = int.from_bytes(file.read(8), "little")
    file.seek(8 + length)
    model = hashlib.sha256(file.read()).hexdigest()
    file.seek(0x100000)
    legacy = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    assert hash_entries(tensors, header) == {
        "sshs_model_hash": model,
        "sshs_legacy_hash": legacy,
        "modelspec.hash_sha256": f"0x{model}",
    }
    assert "modelspec.hash_sha256" not in hash_entries(tensors, {"ss_seed": "1"})
