"""What nodes say as text."""

import json
from pathlib import Path

import pytest
import torch

from lora_workbench.hosts import Applied, LoraChoice, Merged, Saved
from lora_workbench.lora_core.binding import bind
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.models import table_for_base
from lora_workbench.lora_core.stack import StackItem
from lora_workbench.nodes.inspect import LoraWorkbenchInspect
from lora_workbench.nodes.lora_model import LoraModel
from lora_workbench.nodes.lora_stack import StackEntry
from lora_workbench.nodes.merge import LoraWorkbenchMerge
from lora_workbench.nodes.report import applied_report, inspection_report
from lora_workbench.nodes.report_form import Unused
from lora_workbench.nodes.save_model import LoraWorkbenchSaveModel

from ..lora_files import text_encoder_modules, unet_modules

TENSORS = {"x.lora_down.weight": torch.ones(2, 6), "x.lora_up.weight": torch.ones(5, 2)}


def bindings_of(stack):
    """As from an SD 1.5 model."""
    table = table_for_base("sd15")
    return tuple(bind(item.lora, table) for item in stack)


@pytest.fixture
def inspect(host):
    host.bindings = lambda model, clip, stack: bindings_of(stack) if model else ()
    return lambda **inputs: LoraWorkbenchInspect.bound_to(host)().execute(**inputs)["result"][0]


def test_an_inspected_file_is_called_by_its_name(host, inspect):
    named = host.write("style.safetensors")
    model = LoraModel(host.load_lora(LoraChoice("style")))
    report = inspect(lora_model=model, model="model")
    assert f"!! {named} · 0 / 2 tensors used" in report
    assert "<memory>" not in report
    model["x.lora_up.weight"] = torch.zeros(5, 2)
    assert "<memory>/lora_model" in inspect(lora_model=model)


def test_a_mere_inspection_has_no_strengths(host, inspect):
    host.write("style.safetensors")
    assert "model 1" not in inspect(lora_stack=[("style", 1.0, 0.5)], model="model")


def sd15_lora(metadata=()):
    """One rank-1 module of SD 1.5's UNet and one of its text encoder."""
    tensors = {}
    for module in (unet_modules("sd15")[10], text_encoder_modules("sd15")[0]):
        out, into, *kernel = module.shape
        key = module.path.replace(".", "_")
        key = f"lora_unet_{key}" if module.component == "unet" else f"lora_te_{key}"
        tensors[f"{key}.lora_down.weight"] = torch.ones(1, into, *kernel)
        tensors[f"{key}.lora_up.weight"] = torch.ones(out, 1, *[1] * len(kernel))
    return lora_from_tensors("a", tensors, dict(metadata))


def test_an_inspection_tells_the_family_and_what_the_header_says():
    metadata = {
        "modelspec.title": "Ink\n   base: sdxl",
        "modelspec.author": "A" * 500,
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_resolution": "(512, 512)",
        "ss_trigger_words": "ink\x1b[31m",
    }
    report = inspection_report([StackEntry("a", StackItem(sd15_lora(metadata)))], ())
    lines = report.to_text().splitlines()
    assert "   made for: sd15 (by names and shapes)" in lines
    for line in ("architecture: sd_v1", "network: networks.lora", "resolution: (512, 512)"):
        assert f"   {line}" in lines
    assert r"   title: Ink\n   base: sdxl" in lines
    assert "   trigger words: ink\\x1b[31m" in lines
    assert max(map(len, lines)) < 250


def test_an_unknown_family_is_said_to_be_unknown():
    report = inspection_report([StackEntry("a", StackItem(lora_from_tensors("a", TENSORS)))], ())
    assert "   made for: unknown" in report.to_text().splitlines()


@pytest.mark.parametrize(("count", "said"), [(0, "0 LoRAs"), (1, "1 LoRA"), (2, "2 LoRAs")])
def test_one_lora_is_not_called_loras(host, count, said):
    stack = [StackEntry("a", StackItem(lora_from_tensors("a", TENSORS)))] * count
    bindings = bindings_of(entry.item for entry in stack)
    applied = Applied(None, None, bindings, "merge")
    assert applied_report(applied, stack, ()).to_text().startswith(f"{said} applied · merge")
    host.merge = lambda *_: Merged(None, None, bindings, "in place")
    merged = LoraWorkbenchMerge.bound_to(host)().execute(None, stack)
    assert merged["result"][2].startswith(f"{said} merged · in place")


def test_saving_gives_what_it_shows_as_an_output_too(host):
    facts = {"quantised layers": "error 3 %"}
    host.save_model = lambda *_: Saved(Path("out") / "a.safetensors", facts)
    shown = LoraWorkbenchSaveModel.bound_to(host)().execute("model")
    path, receipt = shown["result"]
    assert path == str(Path("out") / "a.safetensors")
    assert [receipt] == shown["ui"]["text"]
    assert "quantised layers: error 3 %" in receipt


def plots_of(host, **inputs):
    host.bindings = lambda model, clip, stack: bindings_of(stack) if model else ()
    return LoraWorkbenchInspect.bound_to(host)().execute(**inputs)["result"][1]


def heights(chart):
    """Pixels of each bar, from left to right."""
    blue = ((chart - torch.tensor([52, 106, 182]) / 255).abs().amax(-1) < 1e-3).sum(0)
    return [int(blue[x]) for x in range(1, len(blue)) if blue[x] and not blue[x - 1]]


def test_charts_of_several_loras_have_one_scale(host):
    """Twice the strength, bars twice as high; the file fits SD 1.5, so no model is needed."""
    lora = sd15_lora()
    write_safetensors(host.folder / "a.safetensors", lora.file.read_many(lora.file.tensors))
    plots = plots_of(host, lora_stack=[("a", 0.5, 0.25), ("a", 1.0, 0.5)])
    assert plots.shape[0] == 2
    assert plots.shape[-1] == 3
    first, second = map(heights, plots)
    assert len(first) == len(second) == 2  # a block of the UNet and the text encoder
    assert all(abs(high - 2 * low) <= 2 for low, high in zip(first, second, strict=True))
    by_model = plots_of(host, lora_stack=[("a", 0.5, 0.25), ("a", 1.0, 0.5)], model="model")
    assert torch.equal(plots, by_model)


def test_a_lora_of_no_known_base_and_no_lora_give_an_empty_chart(host):
    host.write("x.safetensors")
    for inputs in ({"lora_stack": [("x", 1.0, 1.0)]}, {}):
        plots = plots_of(host, **inputs)
        assert plots.shape[0] == 1
        assert heights(plots[0]) == []


def half_used_lora():
    """Two modules of SD 1.5 and 30 of nothing."""
    known = sd15_lora()
    tensors = dict(known.file.read_many(known.file.tensors))
    for number in range(30):
        tensors[f"lora_unet_nothing_{number}.lora_down.weight"] = torch.ones(1, 4)
        tensors[f"lora_unet_nothing_{number}.lora_up.weight"] = torch.ones(4, 1)
    return lora_from_tensors("half", tensors)


def test_the_form_for_the_canvas_holds_what_the_text_says():
    loras = [sd15_lora(), half_used_lora(), lora_from_tensors("none", TENSORS)]
    stack = [StackEntry(lora.name, StackItem(lora, 1.0, 0.5)) for lora in loras]
    bindings = bindings_of(entry.item for entry in stack)
    shown = applied_report(Applied(None, None, bindings, "merge", ("slow",)), stack, ()).to_ui()
    assert set(shown) == {"text", "lora_workbench_report"}
    (form,) = json.loads(json.dumps(shown["lora_workbench_report"]))
    assert (form["headline"], form["level"], form["notes"]) == (
        *("3 LoRAs applied · merge", "wrong", ["slow"]),
    )
    assert [section["level"] for section in form["sections"]] == ["ok", "partial", "wrong"]
    half = form["sections"][1]
    assert half["summary"] == "model 1 · clip 0.5 · 4 / 64 tensors used"
    (unused,) = half["unused"]
    assert unused["count"] == len(unused["keys"]) == 60
    (text,) = shown["text"]
    assert f"!! <memory>/half · {half['summary']}" in text
    line = f"   60 {unused['verdict']}: {unused['reason']} ({', '.join(unused['keys'][:3])}, ...)"
    assert line in text.splitlines()
    assert text.splitlines()[-1] == "note: slow"


def test_the_names_of_unused_tensors_are_bounded_and_their_count_is_not():
    unused = Unused("unmatched", "why", tuple(map(str, range(9000)))).to_json()
    assert (unused["count"], len(unused["keys"])) == (9000, 500)


def test_blocks_of_an_inspection_stand_apart():
    stack = [StackEntry(name, StackItem(sd15_lora())) for name in ("a", "b")]
    bound = inspection_report(stack, bindings_of(entry.item for entry in stack)).to_text()
    blocks = bound.split("\n\n")
    assert len(blocks) == 2
    assert all("OK " in block and block.startswith("<memory>/a\n   ") for block in blocks)


def test_the_charts_of_an_inspection_are_in_its_form_too(host):
    lora = sd15_lora()
    write_safetensors(host.folder / "a.safetensors", lora.file.read_many(lora.file.tensors))
    host.write("x.safetensors")
    host.bindings = lambda model, clip, stack: ()
    stack = [("a", 1.0, 0.5), ("a", 0.5, 0.25), ("x", 1.0, 1.0)]
    shown = LoraWorkbenchInspect.bound_to(host)().execute(lora_stack=stack)
    (form,) = shown["ui"]["lora_workbench_report"]
    first, second, third = [section["bars"] for section in form["sections"]]
    for (label, value), (other, half) in zip(first["values"], second["values"], strict=True):
        assert label == other
        assert half == pytest.approx(value / 2)
    assert first["highest"] == second["highest"] == max(value for _, value in first["values"])
    assert third is None


def test_a_chart_says_that_it_leaves_turns_out(inspect):
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    plain = LoraModel(lora_from_tensors("a", TENSORS))
    turning = {f"{name}.oft_blocks": torch.ones(20, 16, 16)}
    assert "OFT" not in inspect(lora_model=plain)
    report = inspect(lora_model=LoraModel(lora_from_tensors("b", turning)))
    assert "without 1 OFT modules, whose change depends on the base weights" in report
