"""200 rows and 5,000 files: what is done does not grow with them."""

import pytest

from .browser import wait_until_ready
from .test_rows import Editor

ROWS, FILES = 200, 5_000
SHOWN = 200  # of the files, at most
MARK = "() => document.querySelectorAll('.lw-row').forEach((row) => { row.isTheSame = true })"
NEW_ROWS = """() => [...document.querySelectorAll('.lw-row')]
    .flatMap((row, index) => (row.isTheSame ? [] : [index]))"""
MARK_PARTS = (
    """() => document.querySelectorAll('.lw-row *').forEach((part) => { part.isTheSame = true })"""
)
NEW_PARTS = """() => [...new Set([...document.querySelectorAll('.lw-row *')]
    .filter((part) => !part.isTheSame).map((part) => part.closest('.lw-row')))]
    .map((row) => [...row.parentElement.children].indexOf(row))"""
BUILT = f"() => document.querySelectorAll('.lw-row .lw-name').length === {ROWS}"


@pytest.fixture
def many(shown):
    editor = Editor(shown)
    editor.rows = [{"name": f"{n}.safetensors"} for n in range(ROWS)]
    editor.wait(BUILT)
    editor.page.evaluate(MARK)
    editor.page.evaluate(MARK_PARTS)
    yield editor
    assert shown.errors == []


def test_a_changed_row_leaves_the_elements_of_the_others(many):
    field = many.strength("100.safetensors")
    field.fill("0.5")
    many.page.keyboard.press("Enter")
    many.root.get_by_role("checkbox", name="100.safetensors on", exact=True).click()
    many.button("Solo 100.safetensors").click()
    assert [many.page.evaluate(NEW_ROWS), many.page.evaluate(NEW_PARTS)] == [[], []]
    many.button("CLIP strength of 100.safetensors").click()
    assert [many.page.evaluate(NEW_ROWS), many.page.evaluate(NEW_PARTS)] == [[], [100]]
    assert many.rows[100] == {"on": True, "name": "100.safetensors", "model": 0.5, "clip": 0.5}


def test_rows_that_come_go_and_move_leave_the_elements_of_the_others(many):
    many.button("Duplicate 100.safetensors").click()
    assert many.page.evaluate(NEW_ROWS) == [101]
    many.button("Remove 50.safetensors").click()
    assert many.page.evaluate(NEW_ROWS) == [100]
    many.button("Reorder 150.safetensors").focus()
    many.page.keyboard.press("Alt+ArrowUp")
    assert many.page.evaluate(NEW_ROWS) == [100]
    assert many.names[149:151] == ["150.safetensors", "149.safetensors"]


def test_a_long_list_scrolls_within_the_node(many):
    assert many.root.bounding_box()["height"] < 500
    assert many.root.evaluate("(list) => list.scrollHeight") > 20 * ROWS


def test_a_node_that_left_the_graph_keeps_no_elements_and_gets_them_back(many):
    leave = "() => { window.left = app.graph.nodes.at(-1); app.graph.remove(window.left) }"
    many.page.evaluate("() => { window.list = document.querySelector('.lw-rows') }")
    many.page.evaluate(leave)
    many.wait("() => window.list.querySelectorAll('.lw-row').length === 0")
    many.page.evaluate("() => app.graph.add(window.left)")
    many.wait(BUILT)
    assert many.names[100] == "100.safetensors"


def test_the_picker_shows_a_part_of_many_files(shown):
    names = [f"folder {n % 50}/style {n:04}.safetensors" for n in range(FILES)]
    listed = {"loras": [{"name": name, "preview": False} for name in names]}
    shown.page.route("**/lora_workbench/loras*", lambda route: route.fulfill(json=listed))
    editor = Editor(shown)
    editor.button("Add LoRA").click()
    found = editor.page.locator(".lw-found li")
    found.first.wait_for()
    assert found.count() == SHOWN
    assert f"{SHOWN} of {FILES}" in editor.page.locator(".lw-picker").inner_text()
    editor.page.keyboard.type("style 4999")
    assert found.count() == 1
    editor.page.keyboard.press("Escape")
    shown.page.unroute("**/lora_workbench/loras*")


def test_the_list_of_files_is_asked_for_when_the_picker_opens(server, frontend):
    page = frontend.page.context.browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    wait_until_ready(page)
    assert [url for url in asked if "/lora_workbench/" in url] == []
    page.evaluate("() => { app.graph.add(LiteGraph.createNode('LoraWorkbenchApply')) }")
    page.locator(".lw-add").focus()
    page.keyboard.press("Enter")
    page.locator(".lw-found li").first.wait_for()
    assert [url.split("?")[0] for url in asked if "/lora_workbench/" in url] == [
        f"{server.url}/api/lora_workbench/loras"
    ]
    page.close()
