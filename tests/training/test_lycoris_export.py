"""Files of LoHa, LoKr and OFT against what LyCORIS makes of the live layers and of the files."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lora_workbench.lora_core.binding import bind
from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.training.export import TrainedLycoris, TrainingFacts, export, metadata
from lora_workbench.training.export.balance import balanced

from .lycoris_cases import CASES, COMPONENTS, KINDS, bare_layer, exported, lycoris_delta, quiet
from .peft_cases import clean_parts, relative_error, table_of

BOUND = 1e-6
matrix = pytest.mark.parametrize(("family", "kind"), CASES)


def weight_of(family, target):
    """The base weight, as the live part has it."""
    parts = clean_parts(family)
    (weight,) = [
        parameter
        for name, part in parts.items()
        if COMPONENTS[name] == target.component
        for key, parameter in part.named_parameters()
        if f"{name}.{key}" == target.target_key
    ]
    return weight.detach()


@matrix
def test_our_reader_finds_lycoris_deltas(family, kind, tmp_path):
    result, table, deltas = exported(family, kind, tmp_path / "lora.safetensors")
    assert result.worst_error <= BOUND
    lora = load_lora(result.path)
    binding = bind(lora, table)
    assert binding.totals() == {"used": len(lora.file.tensors)}
    read = {bound.target: lora.adapter(bound.module, bound.part) for bound in binding.used()}
    assert read.keys() == deltas.keys()
    for target, delta in deltas.items():
        got = read[target].delta(weight_of(family, target))
        assert relative_error(got.reshape(delta.shape), delta) <= BOUND, target


def is_misread_by_lycoris(tensors, name, target):
    """LyCORIS 4.1.3 guesses the sides of a LoKr, and forgets kernels in doing so."""
    return f"{name}.lokr_w2_b" in tensors and len(target.shape) == 4 and 4 in target.shape[:2]


@matrix
def test_lycoris_reads_the_same_deltas(family, kind, tmp_path):
    """Its own reader makes modules of the file's tensors."""
    import lycoris

    result, table, deltas = exported(family, kind, tmp_path / "lora.safetensors")
    tensors = load_file(result.path)
    names = {m.weight: name for name in {key.split(".")[0] for key in tensors}
             for m in table.find(name)}  # fmt: skip
    for target, delta in deltas.items():
        name = names[target]
        if is_misread_by_lycoris(tensors, name, target):
            continue
        layer = bare_layer(target, weight_of(family, target))
        with torch.no_grad(), quiet():
            found = lycoris.modules.get_module(tensors, name)
            got = lycoris_delta(lycoris.make_module(*found, name, layer))
        assert relative_error(got.reshape(delta.shape), delta) <= BOUND, target


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("begun", [0.2, 1e-6])
def test_halves_stay_near_however_little_was_trained(kind, dtype, begun, tmp_path):
    """Verified within the bound; fp16 alone would cut off what began at 0."""
    result, _, _ = exported("sd15", kind, tmp_path / "lora.safetensors", dtype, begun)
    tensors = load_file(result.path)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for key, tensor in tensors.items():
        role = key.split(".")[1]
        is_whole = role in ("alpha", "rescale") or (role == "oft_blocks" and dtype == "fp16")
        assert tensor.dtype == (torch.float32 if is_whole else half)


def test_a_barely_trained_factor_keeps_its_digits_in_fp16():
    """The one that begins at 0 is 1e-7 after a step; its partner is about 1."""
    generator = torch.Generator().manual_seed(0)
    small, partner = (torch.randn(8, 4, generator=generator) * std for std in (1e-7, 1.0))
    one, other = balanced(small, partner)
    torch.testing.assert_close(one.half().float() * other.half().float(), small * partner,
                               rtol=4e-3, atol=0)  # fmt: skip
    assert torch.equal(one * other, small * partner)  # a power of two


def test_the_header_says_what_lycoris_would():
    facts = TrainingFacts("x", "sd15", rank=4, algo="lokr", network_args={"factor": "8"})
    header = metadata(facts)
    assert header["ss_network_module"] == "lycoris.kohya"
    assert json.loads(header["ss_network_args"]) == {"algo": "lokr", "factor": "8"}


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_other_forms_have_no_names_for_it(form, tmp_path):
    target = next(t for t in table_of("sd15").targets if t.target_key.endswith("attn1.to_q.weight"))
    module = TrainedLycoris(target, {"oft_blocks": torch.zeros(16, 2, 2)}, 0.0)
    path = tmp_path / ("a" if form == "peft" else "a.safetensors")
    with pytest.raises(LoraError, match="has no names for what was trained"):
        export([module], table_of("sd15"), path, form)
    assert not path.exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("loha", "diffusers"),
        ("oft", "takes the strength twice"),
        ("oft constrained", "bounds all turns by the constraint alone"),
        ("oft rescaled", "leaves out the factors of the outputs"),
    ],
)
def test_what_other_programs_make_of_it_is_told(kind, said, tmp_path):
    result, _, _ = exported("sd15", kind, tmp_path / "lora.safetensors")
    assert any(said in warning for warning in result.warnings)
