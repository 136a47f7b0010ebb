"""The settings page "LoRA Workbench"; every default is what the canvas does without it."""

import pytest
from PIL import Image

from .conftest import LORA
from .test_convert import CHAIN, CONVERT, TYPES
from .test_rows import Editor, named

SET = """([name, value]) => app.extensionManager.setting.set(`LoraWorkbench.${name}`, value)"""
DEFAULTS = {
    "Rows.StrengthStep": 0.05,
    "Rows.NewStrength": 1,
    "Rows.SeparateClip": False,
    "Files.Pictures": True,
    "Convert.Ask": False,
}
GET = "(name) => app.extensionManager.setting.get(`LoraWorkbench.${name}`)"
OPEN = "() => app.extensionManager.command.execute('Comfy.ShowSettingsDialog')"
NAMES = (
    "Step of a strength",
    "Strength of an added LoRA",
    "Give an added LoRA its own CLIP strength",
    "Show pictures in the list of LoRA files",
    "Ask before LoRA nodes are converted",
)


@pytest.fixture
def editor(shown):
    for name, value in DEFAULTS.items():
        assert shown.page.evaluate(GET, name) == value
    yield Editor(shown)
    shown.page.evaluate("() => document.querySelector('dialog[open]')?.close()")
    for setting in DEFAULTS.items():
        shown.page.evaluate(SET, list(setting))
    assert shown.errors == []


def choose(editor, name, value):
    editor.page.evaluate(SET, [name, value])


def add(editor):
    editor.button("Add LoRA").click()
    picker = editor.page.get_by_role("dialog", name="Add LoRAs")
    picker.get_by_role("option", name="style").click()
    picker.wait_for(state="detached")


def test_the_step_of_a_strength(editor):
    editor.rows = named(LORA)
    editor.strength(LORA).focus()
    steps = ((None, 1.05), (0.25, 1.3), (0.1, 1.4))
    for step, wanted in steps:
        if step:
            choose(editor, "Rows.StrengthStep", step)
        editor.page.keyboard.press("ArrowUp")
        assert editor.rows[0]["model"] == wanted
    editor.page.keyboard.press("Shift+ArrowUp")
    assert editor.rows[0]["model"] == 1.41


def test_the_strength_of_an_added_lora(editor):
    choose(editor, "Rows.NewStrength", 0.7)
    add(editor)
    assert (editor.rows[0]["model"], "clip" in editor.rows[0]) == (0.7, False)
    choose(editor, "Rows.SeparateClip", True)
    add(editor)
    assert (editor.rows[1]["model"], editor.rows[1]["clip"]) == (0.7, 0.7)
    choose(editor, "Rows.NewStrength", None)  # its field was emptied
    add(editor)
    assert editor.rows[2]["model"] == 1


def test_pictures_in_the_list_of_files(editor, server):
    picture = (server.loras / LORA).with_suffix(".png")
    Image.new("RGB", (8, 8)).save(picture)
    try:
        for shown in (True, False):
            choose(editor, "Files.Pictures", shown)
            editor.button("Add LoRA").click()
            editor.page.locator(".lw-found li").first.wait_for()
            assert bool(editor.page.locator(".lw-found img").count()) is shown
            editor.page.keyboard.press("Escape")
    finally:
        picture.unlink()


def test_a_conversion_that_is_asked_for(editor):
    choose(editor, "Convert.Ask", True)
    page = editor.page
    for answer, is_converted in (("Cancel", False), ("Confirm", True)):
        editor.frontend.prompt(CHAIN)
        page.evaluate(f"() => {{ ({CONVERT})() }}")
        question = page.get_by_text("Convert the LoRA nodes of this workflow")
        question.wait_for()
        page.locator("button").filter(has_text=answer).last.click()
        question.wait_for(state="detached")
        editor.settle()
        assert ("LoraWorkbenchApply" in page.evaluate(TYPES)) is is_converted


def test_the_page_lists_every_setting(frontend):
    page = frontend.page
    page.evaluate(f"() => {{ ({OPEN})() }}")
    page.get_by_text("LoRA Workbench", exact=True).last.click()
    for name in NAMES:
        page.get_by_text(name, exact=True).wait_for()
    page.keyboard.press("Escape")
    page.get_by_text(NAMES[0], exact=True).wait_for(state="detached")
