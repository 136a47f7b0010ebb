"""The row editor of Apply LoRAs and LoRA Stack, in both of ComfyUI's renderers."""

import hashlib
import json
import math
from types import SimpleNamespace

import pytest

from lora_workbench.lora_core.binding import bind
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.lora_core.models import table_for_base
from lora_workbench.lora_core.models.architectures import checkpoint_shapes
from lora_workbench.lora_core.norms import block_norms
from lora_workbench.lora_core.stack import StackItem

from .conftest import HEADER, LORA

FRESH = """async (kind) => {
    app.graph.clear()
    await new Promise((done) => setTimeout(() => requestAnimationFrame(done)))
    const node = LiteGraph.createNode(kind)
    node.pos = [300, 60]
    app.graph.add(node)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    app.graph.setDirtyCanvas(true, true)
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
    if (tracker.captureCanvasState) tracker.captureCanvasState()
    else tracker.checkState()  // the name in 1.27
}"""
WIDGET = """app.graph.nodes.find(({ type }) => type === 'LoraWorkbenchApply')
    .widgets.find(({ name }) => name === 'rows')"""
VALUE = f"() => {WIDGET}.value"
SET = f"(text) => {{ {WIDGET}.value = text }}"
STACK_VALUE = VALUE.replace("LoraWorkbenchApply", "LoraWorkbenchStack")
CHOOSE = """(name) => {
    const loader = app.graph.nodes.find(({ type }) => type === "CheckpointLoaderSimple")
    loader.widgets.find((widget) => widget.name === "ckpt_name").value = name
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
    if (tracker.captureCanvasState) tracker.captureCanvasState()
    else tracker.checkState()
}"""
ANOTHER_STACK = """(name) => {
    const node = LiteGraph.createNode("LoraWorkbenchStack")
    node.pos = [900, 60]
    app.graph.add(node)
    node.widgets.find((widget) => widget.name === "rows").value = JSON.stringify([{ name }])
}"""
A_PROMPT = """() => {
    const node = LiteGraph.createNode("CLIPTextEncode")
    node.pos = [900, 60]
    app.graph.add(node)
    node.widgets[0].value = "a boat, "
}"""
PROMPT_TEXT = (
    """() => app.graph.nodes.find(({ type }) => type === 'CLIPTextEncode').widgets[0].value"""
)
REDO = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.redo()"
STEPS = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
ANOTHER_WORKFLOW = """async () => {
    window.before = app.extensionManager.workflow.activeWorkflow
    const numbers = { version: 0.4, last_node_id: 0, last_link_id: 0 }
    await app.loadGraphData({ ...numbers, nodes: [], links: [], groups: [], extra: {}, config: {} })
}"""
BACK = "() => app.loadGraphData(window.before.activeState, true, true, window.before)"
REMEMBER = """() => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
    if (tracker.captureCanvasState) tracker.captureCanvasState()
    else tracker.checkState()  // the name in 1.27
}"""
UNDO = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()"
RELOAD = "() => app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())))"
OTHER = "inks/Blue Ink.safetensors"
# A loader whose file the page does not list yet: the name in its widget is what counts.
WITH_CHECKPOINT = """(name) => {
    const loader = LiteGraph.createNode("CheckpointLoaderSimple")
    app.graph.add(loader)
    loader.widgets.find((widget) => widget.name === "ckpt_name").value = name
    loader.connect(0, app.graph.nodes.find(({ type }) => type === "LoraWorkbenchApply"), 0)
}"""


@pytest.fixture(scope="module", autouse=True)
def _second_lora(server):
    """Another file, in a folder."""
    path = server.loras / OTHER
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((server.loras / LORA).read_bytes() + b"")
    return path


def header_only_checkpoint(path, base):
    """A file of a base's names and shapes; its weights are a hole, no disk is used."""
    header, end = {}, 0
    for name, shape in checkpoint_shapes(base).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


class Editor:
    """The rows of one fresh node, as a user sees them."""

    def __init__(self, frontend, kind="LoraWorkbenchApply"):
        self.frontend, self.page = frontend, frontend.page
        self.page.set_default_timeout(10_000)
        self.page.evaluate(FRESH, kind)
        self.root = self.page.locator(".lw-rows")
        self.root.wait_for()
        self.settle()

    @property
    def rows(self):
        value = json.loads(self.page.evaluate(VALUE))
        return value["rows"] if value else []

    @rows.setter
    def rows(self, rows):
        self.page.evaluate(SET, json.dumps(rows))
        self.settle()

    @property
    def names(self):
        return [row["name"] for row in self.rows]

    def settle(self):
        """The canvas lays its elements out frame by frame."""
        self.page.wait_for_timeout(300)

    def button(self, label):
        return self.root.get_by_role("button", name=label)

    def strength(self, name, kind="Strength"):
        return self.root.get_by_role("spinbutton", name=f"{kind} of {name}", exact=True)

    def wait(self, expression, argument=None):
        self.frontend.wait(expression, argument)


@pytest.fixture
def editor(shown):
    made = Editor(shown)
    yield made
    shown.page.evaluate("() => document.querySelector('dialog[open]')?.close()")
    assert shown.errors == []


def remember(editor):
    """Undo goes back to what stands there now."""
    editor.page.evaluate(REMEMBER)


def named(*names):
    return [{"name": name} for name in names]


def test_a_file_is_added_by_mouse_and_pinned(editor, server):
    editor.button("Add LoRA").click()
    picker = editor.page.get_by_role("dialog", name="Add LoRAs")
    picker.get_by_role("combobox", name="Search LoRAs").fill("sty")
    picker.get_by_role("option", name="style").click()
    picker.wait_for(state="detached")
    editor.wait(f"() => ({VALUE})().includes('sha256')")
    content = (server.loras / LORA).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    pinned = {"on": True, "name": LORA, "model": 1, "size": len(content), "sha256": sha256}
    assert editor.rows == [pinned]
    output, _ = editor.frontend.current_prompt()
    ((entry),) = output.values()
    assert json.loads(entry["inputs"]["rows"])["rows"] == [pinned]


def test_several_files_are_added_by_keyboard_alone(editor):
    press = editor.page.keyboard.press
    editor.button("Add LoRA").focus()
    press("Enter")
    editor.page.locator(".lw-found li").first.wait_for()
    press("Space")
    press("ArrowDown")
    press("Space")
    press("Enter")
    focused = "document.activeElement.getAttribute('aria-label')"
    editor.wait(f"() => {focused} === 'Strength of {OTHER}'")  # ready to type
    assert editor.names == [OTHER, LORA]
    for key in ("ArrowUp", "ArrowUp", "Shift+ArrowDown"):
        press(key)
    assert editor.rows[0]["model"] == 1.09
    press("Control+a")
    editor.page.keyboard.type("-0,5")
    press("Enter")
    assert editor.rows[0]["model"] == -0.5


@pytest.fixture
def held(editor):
    """Requests for pins, until they are let go: a large file is hashed for seconds."""
    kept = []
    editor.page.route("**/lora_workbench/pin?*", lambda route: kept.append(route))

    def let_go():
        editor.page.unroute("**/lora_workbench/pin?*")
        for route in kept:
            route.continue_()

    def all_asked():
        for _ in range(100):
            if kept:
                return
            editor.page.wait_for_timeout(50)

    yield SimpleNamespace(wait=all_asked, let_go=let_go)
    editor.page.unroute("**/lora_workbench/pin?*")


def add_all_files(editor):
    press = editor.page.keyboard.press
    editor.button("Add LoRA").focus()
    press("Enter")
    editor.page.locator(".lw-found li").first.wait_for()
    for key in ("Space", "ArrowDown", "Space", "Enter"):
        press(key)
    editor.page.get_by_role("dialog").wait_for(state="detached")


def pinned(editor, count):
    editor.wait(f"(count) => (({VALUE})().match(/sha256/g) ?? []).length === count", count)


def test_adding_several_files_is_one_step_of_undo(editor, held):
    editor.rows = named(*"abcde")  # so many that the node grows
    remember(editor)
    before = editor.page.evaluate(STEPS)
    add_all_files(editor)
    held.wait()
    editor.settle()
    remember(editor)
    held.let_go()
    pinned(editor, 2)
    editor.settle()
    remember(editor)  # as each click on the canvas does
    assert editor.page.evaluate(STEPS) == before + 1
    rows = editor.rows
    editor.page.evaluate(UNDO)
    editor.wait(f"() => !({VALUE})().includes('{LORA}')")
    assert editor.names == [*"abcde"]
    editor.page.evaluate(REDO)
    pinned(editor, 2)
    assert editor.rows == rows


def test_a_pin_comes_to_the_node_that_an_undo_built_anew_meanwhile(editor, held):
    add_all_files(editor)
    held.wait()
    remember(editor)
    editor.page.evaluate("() => (app.graph.nodes[0].title = 'renamed')")
    remember(editor)
    editor.page.evaluate(UNDO)
    held.let_go()
    pinned(editor, 2)
    assert editor.page.evaluate("() => app.graph.nodes[0].title") == "Apply LoRAs"
    editor.page.evaluate(REDO)
    assert editor.page.evaluate("() => app.graph.nodes[0].title") == "renamed"
    pinned(editor, 2)


def test_a_pin_comes_to_a_workflow_that_is_not_shown(editor, held):
    add_all_files(editor)
    held.wait()
    editor.page.evaluate(ANOTHER_WORKFLOW)
    editor.settle()
    held.let_go()
    editor.page.wait_for_timeout(1000)
    assert editor.page.evaluate("() => app.graph.nodes.length") == 0
    editor.page.evaluate(BACK)
    pinned(editor, 2)


def test_escape_adds_nothing(editor):
    editor.button("Add LoRA").click()
    editor.page.locator(".lw-found li").first.wait_for()
    editor.page.keyboard.press("Escape")
    editor.page.get_by_role("dialog").wait_for(state="detached")
    assert editor.rows == []


def test_rows_are_moved_by_drag_and_by_keyboard(editor):
    editor.rows = named("a", "b", "c")
    handle, last = editor.button("Reorder a"), editor.button("Move c").bounding_box()
    start = handle.bounding_box()
    mouse = editor.page.mouse
    mouse.move(start["x"] + 5, start["y"] + 5)
    mouse.down()
    mouse.move(last["x"] + 5, last["y"] + 4, steps=5)
    mouse.move(last["x"] + 5, last["y"] + last["height"], steps=5)
    mouse.up()
    assert editor.names == ["b", "c", "a"]
    editor.button("Reorder a").focus()
    editor.page.keyboard.press("Alt+ArrowUp")
    editor.page.keyboard.press("Alt+ArrowUp")
    assert editor.names == ["a", "b", "c"]


def test_a_strength_is_dragged_and_turned_by_the_wheel(editor):
    editor.rows = named("a")
    field = editor.strength("a")
    box = field.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse = editor.page.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + 4, y, steps=2)
    mouse.move(x + 40, y, steps=5)
    mouse.up()
    assert editor.rows[0]["model"] == 1.5
    field.focus()
    mouse.move(x, y)
    mouse.wheel(0, 100)
    editor.wait(f"() => JSON.parse(({VALUE})()).rows[0].model === 1.45")


def test_a_drag_that_is_taken_away_is_a_step_of_undo(editor):
    """As by a touch that becomes a scroll, or a window that comes up."""
    editor.rows = named("a")
    remember(editor)
    editor.page.evaluate(
        """() => {
            const input = document.querySelector('.lw-strength')
            const send = (kind, clientX) => input.dispatchEvent(
                new PointerEvent(kind, { clientX, button: 0, pointerId: 1, bubbles: true }))
            input.setPointerCapture = () => {}
            send("pointerdown", 0)
            send("pointermove", 40)
            send("pointercancel", 0)
        }"""
    )
    assert editor.rows[0]["model"] == 1.5
    editor.page.evaluate(UNDO)
    editor.wait(f"() => JSON.parse(({VALUE})()).rows[0].model === 1")


def test_toggle_solo_duplicate_and_remove(editor):
    editor.rows = named("a", "b")
    on = lambda: [row["on"] for row in editor.rows]  # noqa: E731
    editor.root.get_by_role("checkbox", name="a on", exact=True).click()
    assert on() == [False, True]
    editor.root.get_by_role("checkbox", name="All LoRAs on").click()
    assert on() == [True, True]
    editor.button("Solo b").click()
    assert on() == [False, True]
    editor.button("Duplicate a").click()
    assert editor.names == ["a", "a", "b"]
    editor.button("Remove b").click()
    assert editor.names == ["a", "a"]


def test_clip_strength_and_weighting_stand_there_on_demand(editor):
    editor.rows = [{"name": "a", "model": 0.8}]
    assert editor.strength("a", "CLIP strength").count() == 0
    editor.button("CLIP strength of a by itself").click()
    editor.strength("a", "CLIP strength").fill("0.2")
    editor.button("Weighting of a").click()
    editor.page.get_by_label("Weighting of a", exact=True).fill("IN=0.5")
    editor.page.keyboard.press("Enter")
    (row,) = editor.rows
    assert (row["model"], row["clip"], row["weighting"]) == (0.8, 0.2, "IN=0.5")
    editor.button("CLIP strength of a by itself").click()
    assert "clip" not in editor.rows[0]


def test_changes_are_undone_and_survive_saving(editor):
    editor.rows = named("a", "b")
    editor.button("Duplicate a").click()
    editor.button("Remove b").click()
    assert editor.names == ["a", "a"]
    editor.page.evaluate(RELOAD)
    editor.wait("() => document.querySelectorAll('.lw-row').length === 2")
    assert editor.names == ["a", "a"]


def test_undo_brings_a_removed_row_back(editor):
    editor.rows = named("a", "b")
    editor.button("Solo a").click()
    editor.button("Remove b").click()
    assert editor.names == ["a"]
    editor.page.evaluate(UNDO)
    editor.wait("() => document.querySelectorAll('.lw-row').length === 2")
    assert editor.names == ["a", "b"]


def test_text_that_is_no_rows_stays_and_is_mended_by_hand(editor):
    editor.page.evaluate(SET, "hello")
    assert editor.page.evaluate(VALUE) == "hello"
    assert "Not understood" in editor.root.get_by_role("alert").inner_text()
    editor.root.get_by_role("textbox", name="Rows as text").fill("<lora:a:0.5>")
    editor.page.keyboard.press("Tab")
    assert editor.rows == [{"on": True, "name": "a", "model": 0.5}]


def test_rows_are_copied_as_tags_and_pasted_whole(editor):
    row = {"name": "a", "model": 0.5, "clip": 0.25, "weighting": "IN=0", "on": True}
    editor.rows = [row]
    clipboard = """(paste) => {
        const clipboardData = new DataTransfer()
        const send = (kind) => document.activeElement.dispatchEvent(
            new ClipboardEvent(kind, { clipboardData, bubbles: true, cancelable: true }))
        if (paste !== null) clipboardData.setData("text/plain", paste)
        else send("copy")
        send("paste")
        return clipboardData.getData("text/plain")
    }"""
    editor.button("Add LoRA").focus()
    assert editor.page.evaluate(clipboard, None) == "<lora:a:0.5:0.25>"
    assert editor.rows == [row, row]
    editor.button("Add LoRA").focus()
    editor.page.evaluate(clipboard, "<lora:b:0.1> <lora:c>")
    assert editor.names == ["a", "a", "b", "c"]
    editor.button("Add LoRA").focus()
    editor.page.evaluate(clipboard, "no rows")
    assert editor.names == ["a", "a", "b", "c"]


def test_a_verdict_that_is_selected_is_copied_as_text(editor):
    editor.rows = named(LORA)
    editor.wait("() => document.querySelector('.lw-verdict[data-level]')")
    copied = """(isSelected) => {
        const verdict = document.querySelector('.lw-verdict')
        if (isSelected) getSelection().selectAllChildren(verdict)
        else getSelection().removeAllRanges()
        const clipboardData = new DataTransfer()
        const event = new ClipboardEvent("copy", { clipboardData, bubbles: true, cancelable: true })
        verdict.dispatchEvent(event)
        return [event.defaultPrevented, clipboardData.getData("text/plain")]
    }"""
    assert editor.page.evaluate(copied, True) == [False, ""]
    assert editor.page.evaluate(copied, False) == [True, f"<lora:{LORA}:1:1>"]


def test_each_row_says_what_its_file_is_or_that_it_is_missing(editor):
    editor.rows = named(LORA, "stile.safetensors")
    editor.wait("() => document.querySelectorAll('.lw-verdict[data-level]').length === 2")
    known, missing = editor.root.locator(".lw-verdict").all()
    assert known.inner_text().startswith("Made for SD 1.5: lora, rank")
    assert missing.get_attribute("data-level") == "wrong"
    assert missing.inner_text() == "The LoRA file stile.safetensors is missing."
    assert LORA in missing.get_attribute("title")  # the near match


def test_the_verdict_is_about_the_model_upstream(editor, server):
    """A checkpoint of SDXL's names, none of its weights: only the header is read."""
    for family, level in (("sdxl", "wrong"), ("sd15", "ok")):
        header_only_checkpoint(server.checkpoints / f"{family}.safetensors", family)
        editor.page.evaluate(WITH_CHECKPOINT, f"{family}.safetensors")
        editor.rows = named(LORA)
        selector = f'.lw-verdict[data-level="{level}"]'
        editor.wait(f"() => document.querySelector('{selector}')")


def test_another_checkpoint_in_the_loader_is_another_verdict(editor, server):
    for family in ("sdxl", "sd15"):
        header_only_checkpoint(server.checkpoints / f"other-{family}.safetensors", family)
    editor.page.evaluate(WITH_CHECKPOINT, "other-sdxl.safetensors")
    editor.rows = named(LORA)
    editor.wait("() => document.querySelector('.lw-verdict[data-level=\"wrong\"]')")
    editor.page.evaluate(CHOOSE, "other-sd15.safetensors")
    editor.wait("() => document.querySelector('.lw-verdict[data-level=\"ok\"]')")


def test_an_older_answer_about_a_row_does_not_win(editor, server, request):
    late, other = (f"{request.node.callspec.id} {base}.safetensors" for base in ("sdxl", "sd15"))
    header_only_checkpoint(server.checkpoints / late, "sdxl")
    header_only_checkpoint(server.checkpoints / other, "sd15")
    held = []
    is_late = lambda url: "/verdict?" in url and "sdxl.safetensors" in url  # noqa: E731
    editor.page.route(is_late, lambda route: held.append(route))
    editor.page.evaluate(WITH_CHECKPOINT, late)
    editor.rows = named(LORA)
    editor.page.evaluate(CHOOSE, other)
    editor.wait("() => document.querySelector('.lw-verdict[data-level=\"ok\"]')")
    for route in held:
        route.continue_()
    editor.settle()
    editor.page.unroute(is_late)
    assert held
    assert editor.root.locator(".lw-verdict").get_attribute("data-level") == "ok"


def test_a_row_that_cannot_be_pinned_says_so(editor):
    refusal = {"error": {"headline": "The disk is full.", "fix": "make room.", "facts": {}}}
    refuse = lambda route: route.fulfill(status=400, json=refusal)  # noqa: E731
    editor.page.route("**/lora_workbench/pin?*", refuse)
    editor.button("Add LoRA").click()
    editor.page.get_by_role("option", name="style").click()
    editor.wait(
        "() => [...document.querySelectorAll('.lw-verdict')]"
        ".some((line) => line.textContent.endsWith('Not pinned.'))"
    )
    editor.page.unroute("**/lora_workbench/pin?*")
    editor.frontend.errors.clear()  # the browser tells of the 400 that was asked for
    told = editor.root.locator(".lw-verdict")
    assert "The disk is full. Fix: make room." in told.get_attribute("title")
    assert "sha256" not in editor.rows[0]


def test_fields_beside_the_rows_are_kept(editor):
    value = {"version": 1, "rows": named("a", "b"), "made_by": {"tool": 1}}
    editor.page.evaluate(SET, json.dumps(value))
    editor.button("Remove a").click()
    editor.button("Remove b").click()
    kept = json.loads(editor.page.evaluate(VALUE))
    assert kept == {"version": 1, "rows": [], "made_by": {"tool": 1}}


def test_a_file_s_hash_is_shown_whole_and_short_and_copied(editor, server):
    editor.rows = named(LORA)
    editor.root.get_by_role("button", name="style", exact=True).click()
    dialog = editor.page.get_by_role("dialog", name=LORA)
    copy = dialog.get_by_role("button", name="Copy AutoV2")
    copy.wait_for()
    sha256 = hashlib.sha256((server.loras / LORA).read_bytes()).hexdigest()
    codes = [code.inner_text() for code in dialog.locator("code").all()]
    assert codes == [sha256, sha256[:10].upper()]
    written = """() => { window.copied = []
        navigator.clipboard.writeText = async (text) => window.copied.push(text) }"""
    editor.page.evaluate(written)
    dialog.get_by_role("button", name="Copy sha256").click()
    copy.click()
    assert editor.page.evaluate("() => window.copied") == codes


def test_how_much_a_file_changes_each_block_is_asked_on_demand(editor, server):
    asked = []
    editor.page.on("request", lambda request: asked.append(request.url))
    editor.rows = named(LORA)
    editor.root.get_by_role("button", name="style", exact=True).click()
    dialog = editor.page.get_by_role("dialog", name=LORA)
    summary = dialog.get_by_text("How much it changes each block")
    summary.wait_for()
    assert not any("/norms?" in url for url in asked)
    summary.click()
    dialog.get_by_role("row", name="IN01").wait_for()
    cells = dialog.get_by_role("row").filter(has=editor.page.locator(".lw-norm"))
    told = {
        row.locator("th").inner_text(): float(row.locator("td").last.inner_text())
        for row in cells.all()
    }
    table = table_for_base("sd15")
    norms = block_norms(StackItem(lora := load_lora(server.loras / LORA)), bind(lora, table))
    assert told == {block: pytest.approx(norm, rel=0.01) for block, norm in norms.items()}


def test_a_file_s_details_and_its_words_for_a_prompt(editor):
    editor.rows = named(LORA)
    editor.page.evaluate(A_PROMPT)
    editor.root.get_by_role("button", name="style", exact=True).click()
    dialog = editor.page.get_by_role("dialog", name=LORA)
    dialog.get_by_role("heading", name=HEADER["modelspec.title"]).wait_for()
    text = dialog.inner_text()
    assert "SD 1.5" in text
    assert "kohya" in text
    dialog.get_by_role("combobox", name="Words go to").select_option(index=1)
    dialog.get_by_role("button", name="ink wash 9").click()
    dialog.get_by_role("button", name="paper 2").click()
    assert editor.page.evaluate(PROMPT_TEXT) == "a boat, ink wash, paper"
    dialog.get_by_text("Metadata").click()
    assert "networks.lora" in dialog.inner_text()
    editor.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_a_missing_file_is_replaced_in_the_whole_workflow_in_one_step_of_undo(editor):
    other = {"name": "old/stile.safetensors", "sha256": "0" * 64, "size": 1}  # of the same name
    editor.rows = [
        *named("old/stile.safetensors"),
        {"name": "old/stile.safetensors", "on": False},
        other,
    ]
    editor.page.evaluate(ANOTHER_STACK, "old/stile.safetensors")
    remember(editor)
    before = editor.rows
    editor.root.first.get_by_role("button", name="stile", exact=True).first.click()
    dialog = editor.page.get_by_role("dialog", name="old/stile.safetensors")
    assert "missing" in dialog.get_by_role("alert").inner_text()
    editor.frontend.errors.clear()  # the browser tells of the 404 that was asked for
    dialog.get_by_role("button", name="Use another file").click()
    search = editor.page.get_by_role("combobox", name="Search LoRAs")
    assert search.input_value() == "stile"
    search.fill("style")
    editor.page.locator(".lw-found li").first.wait_for()
    editor.page.keyboard.press("Enter")
    editor.wait(f"() => ({STACK_VALUE})().includes('sha256')")
    assert json.loads(editor.page.evaluate(STACK_VALUE))["rows"][0]["name"] == LORA
    rows = editor.rows
    assert [(row["name"], row["on"]) for row in rows[:2]] == [(LORA, True), (LORA, False)]
    assert all(len(row["sha256"]) == 64 for row in rows)
    assert rows[2] == before[2]
    editor.page.evaluate(UNDO)
    editor.wait(f"() => !({STACK_VALUE})().includes('sha256')")
    assert editor.rows == before


def test_delete_in_a_field_does_not_delete_the_node(editor):
    editor.rows = named("a")
    editor.strength("a").focus()
    editor.page.keyboard.press("Delete")
    editor.button("Remove a").focus()
    editor.page.keyboard.press("Delete")
    assert editor.page.evaluate("() => app.graph.nodes.length") == 1


def test_the_stack_node_has_the_same_editor(shown):
    editor = Editor(shown, "LoraWorkbenchStack")
    editor.button("Add LoRA").click()
    editor.page.locator(".lw-found li").first.click()
    editor.wait(f"() => ({STACK_VALUE})().includes('sha256')")
    assert len(json.loads(editor.page.evaluate(STACK_VALUE))["rows"]) == 1
