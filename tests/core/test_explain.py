"""The report of one LoRA against one base: its JSON contract, its verdicts, its text."""

import json

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.explain import (
    FITS,
    FITS_IN_PART,
    NOT_SUPPORTED,
    UNKNOWN_BASE,
    WRONG_BASE,
    Report,
    check_finite,
    explain,
)
from lora_workbench.lora_core.family import known_tables
from lora_workbench.lora_core.lora import load_lora, lora_from_tensors
from lora_workbench.lora_core.metadata import summarize, trigger_words
from lora_workbench.lora_core.models import BASES, table_from_shapes
from lora_workbench.lora_core.models.architectures import comfy_shapes
from lora_workbench.lora_core.stack import StackItem, make_plan

from ..lora_files import (
    Module,
    is_attention,
    lora_tensors,
    text_encoder_modules,
    unet_modules,
    write_lora,
)

TO_Q = Module("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", (320, 320))
TO_K2 = Module("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", (320, 768))
STORAGE = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def tables():
    return known_tables()


def report_of(tables, tensors, base="sd15", metadata=None):
    lora = lora_from_tensors("x", tensors, metadata)
    return explain(lora, tables.get(base), base, tables)


def test_the_json_document_worked_by_hand(tables, tmp_path):
    """One module of rank 4 and alpha 2 that fits, one tensor that nothing explains."""
    tensors = lora_tensors([TO_Q], alpha=2.0) | {"mystery": torch.ones(1)}
    path = tmp_path / "one.safetensors"
    write_lora(path, [TO_Q], alpha=2.0)
    lora = load_lora(path)
    stranger = lora_from_tensors("one", tensors)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert explain(lora, base="sd15", tables=tables).to_json() == {
        "file": str(path),
        "sha256": lora.sha256,
        "base": "sd15",
        "family": "sd15",
        "formats": ["kohya"],
        "tensors_total": 3,
        "tensors_used": 3,
        "tensors_unused": 0,
        "modules": [
            {
                "lora_key": name,
                "target_key": STORAGE,
                "kind": "lora",
                "rank": 4,
                "alpha": 2.0,
                "scale": 0.5,
            }
        ],
        "unused": [],
        "verdict": FITS,
        "notes": [],
    }
    document = explain(stranger, base="sd15", tables=tables).to_json()
    assert document["verdict"] == FITS_IN_PART
    assert (document["tensors_total"], document["tensors_unused"]) == (4, 1)
    assert document["unused"] == [
        {
            "key": "mystery",
            "reason": "no known suffix ends this name",
            "verdict": "unknown name",
        }
    ]


def test_the_document_is_json_and_its_counts_agree(tables):
    tensors = lora_tensors(unet_modules("sdxl") + text_encoder_modules("sdxl"), empty=True)
    for base in BASES:
        document = json.loads(json.dumps(report_of(tables, tensors, base).to_json()))
        assert document["tensors_used"] + document["tensors_unused"] == document["tensors_total"]
        assert len(document["unused"]) == document["tensors_unused"]
        assert all(row["reason"] for row in document["unused"])


@pytest.mark.parametrize("base", BASES)
def test_the_family_does_not_depend_on_the_base_asked_for(tables, base):
    modules = unet_modules("sd21") + text_encoder_modules("sd21")
    tensors = lora_tensors(modules, "peft", empty=True)
    assert report_of(tables, tensors, base).family == "sd21"


def test_the_family_is_not_read_from_metadata(tables):
    """A file that says SDXL and holds SD1.5 shapes."""
    metadata = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "sdxl"}
    report = report_of(tables, lora_tensors([TO_Q, TO_K2]), None, metadata)
    assert (report.family, report.base, report.verdict) == ("sd15", "sd15", FITS)


def test_a_nine_channel_first_convolution_makes_it_an_inpainting_lora(tables):
    convolution = Module("unet", "conv_in", (320, 9, 3, 3))
    assert report_of(tables, lora_tensors([TO_Q, TO_K2, convolution]), None).family == (
        "sd15-inpaint"
    )


def test_a_flat_down_of_a_convolution_is_the_kernel_it_flattens(tables):
    """ComfyUI's TrainLoraNode writes ``down`` of a 3x3 convolution as (rank, in * 9)."""
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, 4, 3, 3), (320, 2)))
    name = "diffusion_model.input_blocks.0.0"
    flat = {f"{name}.lora_down.weight": down.flatten(1), f"{name}.lora_up.weight": up}
    wrong = flat | {f"{name}.lora_down.weight": down.flatten(1)[:, :-1]}
    assert report_of(tables, flat).verdict == FITS
    assert report_of(tables, wrong).tensors_used == 0
    whole = flat | {f"{name}.lora_down.weight": down}
    flat_delta, delta = (first_delta(tables["sd15"], tensors) for tensors in (flat, whole))
    assert torch.equal(flat_delta, delta)


def first_delta(table, tensors):
    plan = make_plan([StackItem(lora_from_tensors("x", tensors), 1.0)], table)
    ((term,),) = plan.terms.values()
    return term.lora.adapter(term.module, term.part).delta(torch.empty(term.target.shape))


def test_a_plain_lora_fits_the_inpainting_model_of_its_family(tables):
    convolution = Module("unet", "conv_in", (320, 4, 3, 3))
    report = report_of(tables, lora_tensors([TO_Q, TO_K2, convolution]), "sd15-inpaint")
    assert (report.verdict, report.family, report.notes()) == (FITS, "sd15", [])


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj", "flux"),
        ("transformer.single_transformer_blocks.0.attn.to_k", "flux"),
        ("lora_unet_joint_blocks_0_context_block_attn_qkv", "sd3"),
    ],
)
def test_a_later_family_is_named_and_the_file_described(tables, key, family):
    tensors = {
        f"{key}.lora_down.weight": torch.ones(2, 3072),
        f"{key}.lora_up.weight": torch.ones(3072, 2),
    }
    report = report_of(tables, tensors, None)
    assert (report.family, report.base, report.verdict) == (family, family, NOT_SUPPORTED)
    assert {row.reason for row in report.unused} == {f"{family} models come in a later version"}
    assert report.to_json()["formats"] == ["kohya"]


def test_names_of_no_known_model_have_no_family(tables):
    tensors = {"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.ones(3, 2)}
    report = report_of(tables, tensors, None)
    assert (report.family, report.base, report.verdict) == (None, None, UNKNOWN_BASE)
    assert {row.reason for row in report.unused} == {"no known base has a module so named"}


def test_known_names_of_other_shapes_are_not_called_unknown_names(tables):
    report = report_of(tables, lora_tensors([Module("unet", TO_Q.path, (32, 32))]), None)
    assert (report.family, report.verdict) == (None, UNKNOWN_BASE)
    assert {row.reason for row in report.unused} == {
        "the known bases' modules so named have other shapes"
    }
    assert "its names are those of known bases" in report.to_text().partition("\n")[0]


def test_a_shape_that_does_not_fit_makes_it_the_wrong_base(tables):
    wrong = lora_tensors([Module("unet", TO_K2.path, (320, 1024))])
    report = report_of(tables, lora_tensors([TO_Q]) | wrong)
    assert report.verdict == WRONG_BASE
    assert {row.reason for row in report.unused} == {
        "down [4, 1024], up [320, 4], weight [320, 768]"
    }


def test_what_would_match_on_another_base_is_said(tables):
    modules = unet_modules("sd15") + text_encoder_modules("sd15")
    tensors = lora_tensors(modules, empty=True)
    report = report_of(tables, tensors, "sdxl")
    assert "made for sd15" in report.notes()[0]
    assert "sd15 all" in report.to_text()
    assert report.to_text().startswith("<memory>/x is not for sdxl. It was made for sd15.")


def test_a_text_encoder_lora_without_a_text_encoder_is_not_used_here():
    shapes = {key: s for key, s in comfy_shapes("sd15").items() if key.startswith("diffusion")}
    modules = [TO_Q, *text_encoder_modules("sd15")[:2]]
    lora = lora_from_tensors("x", lora_tensors(modules))
    report = explain(lora, table_from_shapes(shapes), "model", tables={})
    assert [row.verdict for row in report.unused] == ["not used here"] * 4
    assert (report.tensors_used, report.verdict) == (2, FITS_IN_PART)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_the_family_is_found_by_shapes_whatever_the_kind(tables, kind):
    """A cross-attention key of 1024 columns is SD2's."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    factors = {
        "loha": {
            "hada_w1_a": (320, 2),
            "hada_w1_b": (2, 1024),
            "hada_w2_a": (320, 2),
            "hada_w2_b": (2, 1024),
        },
        "lokr": {"lokr_w1": (16, 32), "lokr_w2_a": (20, 2), "lokr_w2_b": (2, 32)},
    }[kind]
    tensors = {f"{name}.{suffix}": torch.ones(shape) for suffix, shape in factors.items()}
    report = report_of(tables, tensors, None)
    assert (report.family, report.verdict) == ("sd21", FITS)


def test_the_text_says_the_verdict_first_and_every_kind_once(tables):
    modules = [module for module in unet_modules("sd15") if is_attention(module)]
    tensors = lora_tensors(modules[:3], rank=4, alpha=4.0)
    tensors |= lora_tensors(modules[3:5], rank=8, alpha=4.0)
    text = report_of(tables, tensors | {"mystery": torch.ones(1)}).to_text()
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("<memory>/x fits sd15 in part: 15 of 16 tensors are used.\n")
    assert ["3", "lora", "4", "4", "1"] in lines
    assert ["2", "lora", "8", "4", "0.5"] in lines
    assert any(line[:3] == ["1", "unknown", "name"] for line in lines)


def test_equal_files_give_equal_text(tables):
    tensors = lora_tensors([TO_Q, *text_encoder_modules("sd15")[:3]])
    reports = [report_of(tables, tensors) for _ in range(2)]
    assert reports[0].to_text() == reports[1].to_text()


def test_nan_is_found_in_any_tensor_even_an_unused_one():
    tensors = lora_tensors([TO_Q]) | {"mystery": torch.tensor([0.0, torch.nan])}
    with pytest.raises(LoraError, match="mystery holds NaN"):
        check_finite(lora_from_tensors("x", tensors))


def test_nan_is_found_behind_the_first_hundred_tensors():
    tensors = lora_tensors(unet_modules("sd15")[:80], rank=1)
    last = list(tensors)[-1]
    tensors[last] = tensors[last].clone().fill_(torch.inf)
    with pytest.raises(LoraError, match="NaN or infinity"):
        check_finite(lora_from_tensors("x", tensors))


def test_finite_numbers_of_every_dtype_pass():
    dtypes = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64]
    tensors = {str(dtype): torch.ones(3).to(dtype) for dtype in dtypes}
    check_finite(lora_from_tensors("x", tensors))


def test_integer_factors_are_no_factors(tables):
    tensors = {key: tensor.to(torch.int8) for key, tensor in lora_tensors([TO_Q]).items()}
    report = report_of(tables, tensors)
    assert report.verdict == NOT_SUPPORTED
    assert "torch.int8" in report.unused[0].reason


def test_a_report_can_be_made_from_a_binding_alone(tables):
    """What a node has: no table of another base, no family."""
    binding = report_of(tables, lora_tensors([TO_Q])).binding
    report = Report(binding, "the connected model", None)
    assert report.verdict == FITS
    assert report.to_text().startswith(
        "<memory>/x fits the connected model: all 2 tensors are used."
    )


def test_the_authors_phrase_goes_before_counted_tags():
    tags = json.dumps({"10_a": {"cat": 3, "dog": 9}, "20_b": {"cat": 8, " ": 50}})
    assert trigger_words({"ss_tag_frequency": tags}) == ("cat", "dog")
    assert trigger_words({"ss_tag_frequency": tags}, limit=1) == ("cat",)
    assert trigger_words({"ss_tag_frequency": tags, "modelspec.trigger_phrase": "a sks dog"}) == (
        "a sks dog",
    )


@pytest.mark.parametrize(
    "stored", ["", "{", "[]", "3", '{"a": 1}', '{"a": {"b": "c"}}', "[" * 99_999]
)
def test_tags_of_another_form_are_no_trigger_words(stored):
    assert trigger_words({"ss_tag_frequency": stored}) == ()


def test_metadata_is_summed_up_without_empty_entries():
    metadata = {"ss_output_name": "cat", "ss_network_dim": "None", "ss_steps": "900", "other": "x"}
    assert summarize(metadata) == {"title": "cat", "steps": "900"}
