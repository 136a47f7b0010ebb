"""The weighting of a row: its strip, its sliders, and what is wrong with it."""

import json

import pytest

from .conftest import LORA
from .test_rows import UNDO, VALUE, WITH_CHECKPOINT, Editor, header_only_checkpoint

SLIDERS = "() => document.querySelectorAll('.lw-block').length"
BARS = "() => document.querySelectorAll('.lw-spark rect').length - 1"  # one is the ground line
TOLD = "() => document.querySelector('.lw-reasons').textContent"


@pytest.fixture
def editor(shown):
    made = Editor(shown)
    yield made
    assert shown.errors == []


@pytest.fixture
def on_sd15(editor, server):
    header_only_checkpoint(server.checkpoints / "weighting-sd15.safetensors", "sd15")
    editor.page.evaluate(WITH_CHECKPOINT, "weighting-sd15.safetensors")
    return editor


def weighting(editor):
    return editor.rows[0].get("weighting")


def opened(editor, text=None):
    """The panel of one row, once the blocks are there."""
    editor.rows = [{"name": LORA} if text is None else {"name": LORA, "weighting": text}]
    editor.button(f"Weighting of {LORA}").click()
    editor.wait(f"() => ({SLIDERS})() > 0")
    return editor.root.locator(".lw-panel")


def slider(editor, block):
    return editor.root.get_by_role("slider", name=f"{block} of {LORA}", exact=True)


def test_a_row_with_a_weighting_shows_its_factors_by_block(on_sd15):
    on_sd15.rows = [{"name": LORA, "weighting": "IN04-08=0.5, OUT11=0"}, {"name": LORA}]
    on_sd15.wait(f"() => ({BARS})() === 26")
    strip = on_sd15.root.get_by_role("img", name=f"Weighting of {LORA}")
    told = "BASE 1, IN00-03 1, IN04-08 0.5, IN09-11 1, M00 1, OUT00-10 1, OUT11 0"
    assert strip.get_attribute("aria-label") == f"Weighting of {LORA}: {told}"
    assert strip.count() == 1


def test_the_blocks_are_the_models_and_else_those_of_the_loras_base(editor, server):
    opened(editor)
    assert editor.page.evaluate(SLIDERS) == 26
    header_only_checkpoint(server.checkpoints / "weighting-sdxl.safetensors", "sdxl")
    editor.page.evaluate(WITH_CHECKPOINT, "weighting-sdxl.safetensors")
    editor.wait(f"() => ({SLIDERS})() === 20")
    presets = editor.root.get_by_role("combobox", name="Preset").inner_text()
    assert "Style block" in presets
    assert "OUTALL" not in presets


def test_a_slider_is_set_by_keyboard_and_each_press_is_one_step(on_sd15):
    opened(on_sd15, "attn2=0")
    slider(on_sd15, "IN04").focus()
    for _ in range(2):
        on_sd15.page.keyboard.press("ArrowDown")
    assert weighting(on_sd15) == "IN04=0.9, attn2=0"
    slider(on_sd15, "IN05").focus()
    for _ in range(2):
        on_sd15.page.keyboard.press("ArrowDown")
    assert weighting(on_sd15) == "IN04-05=0.9, attn2=0"
    assert slider(on_sd15, "IN05").get_attribute("aria-valuetext") == "0.9"
    on_sd15.page.evaluate(UNDO)
    on_sd15.wait(f"() => ({VALUE})().includes('IN04=0.9, IN05=0.95, attn2=0')")


def test_a_drag_of_a_slider_is_one_step_of_undo(on_sd15):
    opened(on_sd15)
    before = on_sd15.page.evaluate(VALUE)
    box = slider(on_sd15, "OUT03").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse = on_sd15.page.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x, y + 10, steps=4)
    mouse.move(x, box["y"] + box["height"], steps=4)
    mouse.up()
    assert weighting(on_sd15) == "OUT03=0"
    on_sd15.wait(f"() => ({BARS})() === 26")
    on_sd15.page.evaluate(UNDO)
    on_sd15.wait(f"(before) => ({VALUE})() === before", before)


def test_parts_and_presets_are_written_as_rules(on_sd15):
    opened(on_sd15, "IN04=0.5")
    part = on_sd15.root.get_by_role("textbox", name=f"attn2 of {LORA}")
    part.fill("0,25")
    on_sd15.page.keyboard.press("Enter")
    assert weighting(on_sd15) == "IN04=0.5, attn2=0.25"
    part.fill("")
    on_sd15.page.keyboard.press("Enter")
    assert weighting(on_sd15) == "IN04=0.5"
    presets = on_sd15.root.get_by_role("combobox", name="Preset")
    presets.select_option(label="OUTALL: output blocks")
    assert weighting(on_sd15) == "default=0, BASE=1, OUT03-11=1"
    values = [slider(on_sd15, block).input_value() for block in ("BASE", "IN00", "OUT03")]
    assert values == ["1", "0", "1"]
    presets.select_option(label="All 1")
    assert "weighting" not in on_sd15.rows[0]


def test_a_list_of_numbers_becomes_rules_when_a_slider_is_moved(on_sd15):
    numbers = "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"
    opened(on_sd15, numbers)
    assert weighting(on_sd15) == numbers
    on_sd15.wait("() => document.querySelector('.lw-block input').disabled === false")
    assert slider(on_sd15, "M00").input_value() == "0"
    slider(on_sd15, "M00").focus()
    on_sd15.page.keyboard.press("ArrowUp")
    assert weighting(on_sd15) == "default=0, BASE=1, M00=0.05, OUT03-11=1"


def test_a_wrong_text_shows_its_reason_on_the_row(on_sd15):
    on_sd15.rows = [{"name": LORA, "weighting": "IN04=0.5, attn3=0"}]
    on_sd15.wait(f"() => ({TOLD})().startsWith(\"Unknown selector 'attn3'.\")")
    told = on_sd15.root.locator(".lw-reasons").first
    assert told.get_attribute("data-level") == "wrong"
    assert "Rule: attn3=0" in told.get_attribute("title")
    on_sd15.button(f"Weighting of {LORA}").click()
    field = on_sd15.root.get_by_role("textbox", name=f"Weighting of {LORA}", exact=True)
    field.fill("IN04=0.5, mid_block.07=0")
    on_sd15.page.keyboard.press("Enter")
    on_sd15.wait(f"() => ({TOLD})() === 'mid_block.07=0 names nothing in this model.'")
    field.fill("IN04=0.5")
    on_sd15.page.keyboard.press("Enter")
    on_sd15.wait("() => document.querySelector('.lw-reasons').hidden")


def test_an_answer_that_comes_late_takes_no_typed_text(editor, server, request):
    late = f"{request.node.callspec.id} typed.safetensors"
    header_only_checkpoint(server.checkpoints / late, "sd15")
    editor.page.evaluate(WITH_CHECKPOINT, late)
    held = []
    is_late = lambda url: "/blocks?" in url and "typed" in url  # noqa: E731
    editor.page.route(is_late, lambda route: held.append(route))
    editor.rows = [{"name": LORA}]
    editor.button(f"Weighting of {LORA}").click()
    editor.page.keyboard.type("IN04=0")
    for route in held:
        route.continue_()
    editor.wait(f"() => ({SLIDERS})() === 26")
    editor.page.unroute(is_late)
    editor.page.keyboard.type(".5")
    editor.page.keyboard.press("Enter")
    assert (weighting(editor), len(held)) == ("IN04=0.5", 1)
    assert slider(editor, "IN04").input_value() == "0.5"


def test_the_panel_stays_open_while_its_row_changes_and_moves(on_sd15):
    on_sd15.rows = [{"name": LORA}, {"name": "other"}]
    on_sd15.button(f"Weighting of {LORA}").click()
    on_sd15.root.get_by_role("checkbox", name=f"{LORA} on", exact=True).click()
    on_sd15.button(f"Reorder {LORA}").focus()
    on_sd15.page.keyboard.press("Alt+ArrowDown")
    assert on_sd15.names == ["other", LORA]
    panel = on_sd15.root.locator("li").nth(1).locator(".lw-panel")
    assert panel.count() == on_sd15.root.locator(".lw-panel").count() == 1
    on_sd15.button(f"Weighting of {LORA}").click()
    assert on_sd15.root.locator(".lw-panel").count() == 0
    assert all("weighting" not in row for row in on_sd15.rows)


def test_rules_of_a_workflow_as_json_stay_until_they_are_edited(on_sd15):
    rules = [{"select": "IN04-05", "factor": 0.5}]
    opened(on_sd15, rules)
    assert weighting(on_sd15) == rules
    on_sd15.wait("() => document.querySelector('.lw-block input').disabled === false")
    slider(on_sd15, "IN05").focus()
    on_sd15.page.keyboard.press("ArrowUp")
    assert weighting(on_sd15) == "IN04=0.5, IN05=0.55"
    output, _ = on_sd15.frontend.current_prompt()
    sent = [e for e in output.values() if e["class_type"] == "LoraWorkbenchApply"]
    assert json.loads(sent[0]["inputs"]["rows"])["rows"][0]["weighting"] == "IN04=0.5, IN05=0.55"
