"""Commands for the rows of the selected node, from the menu and by key."""

import json
from uuid import uuid4

import pytest

from .conftest import LORA
from .test_rows import SET, Editor, named

SELECT = """() => app.canvas.selectNode(
    app.graph.nodes.find(({ type }) => type === 'LoraWorkbenchApply'))"""
UNSELECT = "() => app.canvas.deselectAll()"
RUN = "(name) => { app.extensionManager.command.execute(`LoraWorkbench.${name}`) }"
LABELS = """() => app.extensionManager.command.commands
    .filter(({ id }) => id.startsWith('LoraWorkbench.')).map(({ label }) => label)"""
VERDICT = "() => document.querySelector('.lw-verdict').textContent"

MENU = """() => {
    const pinia = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia
    const at = (items, label) => items.find((item) => item.label === label).items
    const items = at(at(pinia._s.get('menuItem').menuItems, 'Extensions'), 'LoRA Workbench')
    return JSON.stringify(items.filter(({ label }) => label).map(({ label }) => label))
}"""


@pytest.fixture
def editor(shown):
    made = Editor(shown)
    made.page.evaluate("() => document.activeElement?.blur()")
    yield made
    shown.page.evaluate("() => document.querySelector('dialog[open]')?.close()")
    assert shown.errors == []


@pytest.fixture
def another(server):
    """The name of a file that no test has asked about."""
    path = server.loras / f"{uuid4()}.safetensors"
    path.write_bytes((server.loras / LORA).read_bytes())
    yield path.name
    path.unlink()


def select(editor):
    editor.page.evaluate(SELECT)
    editor.settle()


def test_l_adds_loras_to_the_selected_node(editor):
    select(editor)
    editor.page.keyboard.press("l")
    picker = editor.page.get_by_role("dialog", name="Add LoRAs")
    picker.get_by_role("option", name=LORA.removesuffix(".safetensors")).click()
    picker.wait_for(state="detached")
    assert editor.names == [LORA]


def test_shift_l_turns_all_rows_off_and_on(editor):
    editor.rows = [*named("a.safetensors"), {"name": "b.safetensors", "on": False}]
    select(editor)
    for on in (True, False, True):
        editor.page.keyboard.press("Shift+L")
        editor.settle()
        assert [row["on"] for row in editor.rows] == [on, on]


def test_shift_i_shows_the_file_of_the_row_that_had_the_focus_last(editor, another):
    editor.rows = named(another, LORA)
    select(editor)
    for name in (another, LORA):
        editor.page.keyboard.press("Shift+I")
        dialog = editor.page.get_by_role("dialog", name=name)
        dialog.locator("h2").first.wait_for()  # what comes moves the button
        dialog.get_by_role("button", name="Close").click()
        dialog.wait_for(state="detached")
        editor.strength(LORA).focus()
        editor.page.evaluate("() => document.activeElement.blur()")


def test_shift_r_checks_every_file_anew(editor, server, another):
    path = server.loras / another
    content = path.read_bytes()
    path.unlink()
    editor.rows = named(another)
    editor.wait(f"() => ({VERDICT})()")
    without = editor.page.evaluate(VERDICT)
    path.write_bytes(content)
    editor.page.keyboard.press("Shift+R")
    editor.wait(f"(before) => ({VERDICT})() !== before", without)


@pytest.mark.parametrize("way", ["the R key", "the command"])
def test_files_are_asked_about_again_at_once(editor, another, way):
    editor.rows = [{"name": another, "weighting": "IN04=0.5"}]
    asked = []
    routes = ("verdict?", "blocks?", "resolve?")
    note = lambda request: asked.extend(r for r in routes if r in request.url)  # noqa: E731
    editor.page.on("request", note)
    editor.settle()
    asked.clear()
    if way == "the command":
        editor.page.evaluate(RUN, "Recheck")
    else:
        editor.page.evaluate("() => app.refreshComboInNodes()")
    for _ in range(100):
        if set(routes) <= set(asked):
            break
        editor.page.wait_for_timeout(50)
    editor.page.remove_listener("request", note)
    assert set(routes) <= set(asked)


def test_a_command_without_a_node_or_a_row_says_what_is_missing(editor):
    for setup, message in ((UNSELECT, "Select an Apply LoRAs"), (SELECT, "no LoRAs yet")):
        editor.page.evaluate(setup)
        editor.page.evaluate(RUN, "ShowDetails")
        editor.page.get_by_text(message).first.wait_for()


def test_rows_that_cannot_be_read_are_left_alone(editor):
    text = "not rows at all"
    editor.page.evaluate(SET, text)
    select(editor)
    editor.page.evaluate(RUN, "AddLoras")
    editor.settle()
    assert not editor.page.locator("dialog[open]").count()
    output, _ = editor.frontend.current_prompt()
    assert next(iter(output.values()))["inputs"]["rows"] == text


def test_every_command_stands_in_the_menu(frontend):
    labels = frontend.page.evaluate(LABELS)
    assert len(labels) == 6
    menu = json.loads(frontend.page.evaluate(MENU))
    assert sorted(menu) == sorted(labels)
