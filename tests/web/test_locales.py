"""The canvas in Korean: nodes, our own texts, commands and settings."""

import json

import pytest

from ..node_texts import LOCALES
from .conftest import LORA, wait_until_ready
from .test_rows import Editor

CHOOSE = "(language) => app.extensionManager.setting.set('Comfy.Locale', language)"
TEXTS = """() => {
    const node = LiteGraph.createNode("LoraWorkbenchLoad")
    const label = ({ label, localized_name, name }) => label ?? localized_name ?? name
    return JSON.stringify({
        title: node.title,
        inputs: Object.fromEntries(node.inputs.map((input) => [input.name, label(input)])),
        outputs: node.outputs.map(label),
        widgets: Object.fromEntries(node.widgets.map((widget) => [widget.name, label(widget)])),
    })
}"""


@pytest.fixture
def korean(frontend):
    """The canvas after its language was changed."""
    page = frontend.page
    page.evaluate(CHOOSE, "ko")
    page.reload()
    wait_until_ready(page)
    yield frontend
    page.evaluate(CHOOSE, "en")
    page.reload()
    wait_until_ready(page)
    assert frontend.errors == []


def texts_of(name):
    path = LOCALES / "ko" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_canvas_speaks_korean(korean):
    node = texts_of("nodeDefs")["LoraWorkbenchLoad"]
    names = {name: slot["name"] for name, slot in node["inputs"].items()}
    said = json.loads(korean.page.evaluate(TEXTS))
    assert said["title"] == node["display_name"]
    assert {**said["inputs"], **said["widgets"]} == names
    assert said["outputs"] == [slot["name"] for slot in node["outputs"].values()]

    ours = texts_of("main")["loraWorkbench"]
    editor = Editor(korean)
    editor.page.evaluate("() => app.canvas.selectNode(app.graph.nodes[0])")
    editor.page.keyboard.press("l")
    picker = editor.page.get_by_role("dialog", name=ours["filesTitle"])
    picker.get_by_placeholder(ours["filesSearch"]).wait_for()
    found = ours["filesFound"].partition("{count}")[2]
    picker.get_by_text(found).wait_for()
    editor.page.keyboard.press("Escape")

    editor.page.evaluate(
        "() => { app.extensionManager.command.execute('Comfy.ShowSettingsDialog') }"
    )
    editor.page.get_by_text("LoRA Workbench", exact=True).last.click()
    for setting in texts_of("settings").values():
        editor.page.get_by_text(setting["name"], exact=True).wait_for()
    editor.page.keyboard.press("Escape")


def says(editor, texts):
    """Our elements on Apply LoRAs, in the language of `texts`."""

    def text(key, **values):
        return texts[key].format(**values)

    assert editor.root.get_attribute("aria-label") == text("loras")
    editor.button(text("addLora")).wait_for()
    editor.root.get_by_role("checkbox", name=text("allOn")).wait_for()
    editor.rows = [{"name": LORA, "weighting": "IN04=0.5"}]
    label = text("rowStrength", name=LORA)
    strength = editor.root.get_by_role("spinbutton", name=label, exact=True)
    strength.wait_for()
    assert strength.get_attribute("title") == text("strengthHelp", name=label)

    editor.button(text("weightingEdit", name=LORA)).click()
    panel = editor.root.locator(".lw-panel")
    field = panel.get_by_role("textbox", name=text("weighting", name=LORA), exact=True)
    assert field.get_attribute("placeholder") == text("weightingHelp")
    panel.get_by_role("group", name=text("weightingBlocks")).wait_for()
    part = text("weightingFactor", part="IN04", name=LORA)
    panel.get_by_role("slider", name=part, exact=True).wait_for()
    presets = panel.get_by_role("combobox", name=text("weightingPreset", name=LORA))
    options = presets.locator("option").all_inner_texts()
    assert options[:3] == [text(key) for key in ("weightingOwn", "presetAll", "presetNoText")]

    report = editor.page.get_by_role("region", name=text("report"), exact=True)
    assert report.inner_text() == text("reportEmpty")

    editor.root.get_by_role("button", name="style", exact=True).click()
    dialog = editor.page.get_by_role("dialog", name=LORA)
    for key in ("detailsBase", "wordsTitle", "normsTitle"):
        dialog.get_by_text(text(key), exact=True).wait_for()
    dialog.get_by_role("button", name=text("close"), exact=True).click()


def test_our_elements_speak_korean(korean):
    says(Editor(korean), texts_of("main")["loraWorkbench"])


def test_our_elements_speak_english_again(frontend):
    """After the Korean of the test above."""
    path = LOCALES / "en" / "main.json"
    says(Editor(frontend), json.loads(path.read_text(encoding="utf-8"))["loraWorkbench"])
