"""An opened workflow whose LoRA files are missing here, or lie here under another name."""

import hashlib
import json

import pytest

from ..lora_files import unet_modules, write_lora
from ..workflow_examples import canvas, node, subgraph
from .conftest import LORA

APPLY, STACK = "LoraWorkbenchApply", "LoraWorkbenchStack"
KNOWN, WINDOWS = "relink/known.safetensors", "relink/os.safetensors"
OPEN = """async (text) => {
    await app.loadGraphData(JSON.parse(text))
    const frame = () => new Promise((done) => setTimeout(() => requestAnimationFrame(done)))
    await frame()
    await frame()
}"""
ROWS = """() => {
    const graphs = [app.rootGraph ?? app.graph]
    graphs.push(...graphs[0].subgraphs.values())
    const texts = graphs.flatMap((graph) => graph.nodes).flatMap(({ widgets }) => widgets ?? [])
        .filter(({ name }) => name === "rows").map(({ value }) => value)
    return texts.map((text) => JSON.parse(text)).flatMap((value) => value.rows ?? value)
}"""
RENAME = """() => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
    const capture = () => tracker.captureCanvasState?.() ?? tracker.checkState?.()  // 1.27
    capture()
    app.graph.nodes[0].title = "renamed"
    capture()
}"""
PICTURES = "(on) => app.extensionManager.setting.set('LoraWorkbench.Files.Pictures', on)"
FIND = "() => app.extensionManager.command.execute('LoraWorkbench.FindFiles')"
UNDO = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()"


@pytest.fixture(scope="module", autouse=True)
def pins(server):
    """Two more files; size and hash of each."""
    found = {}
    for alpha, name in enumerate((KNOWN, WINDOWS), start=2):
        path = server.loras / name
        path.parent.mkdir(exist_ok=True)
        write_lora(path, unet_modules("sd15")[:3], {}, alpha=float(alpha))
        data = path.read_bytes()
        found[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    yield found
    for name in found:  # other tests count files
        (server.loras / name).unlink()


def rows_node(number, kind, *rows):
    values = [json.dumps({"version": 1, "rows": [{"on": True, "model": 1, **row} for row in rows]})]
    if kind == STACK:
        inputs = [("lora_stack", "LORA_STACK", None)]
        return node(number, kind, inputs, ("LORA_STACK", "STRING", "STRING"), values)
    inputs = [(name.lower(), name, None) for name in ("MODEL", "CLIP", "LORA_STACK")]
    outputs = ("MODEL", "CLIP", "STRING", "STRING")
    return node(number, kind, inputs, outputs, [*values, "auto", "report"])


def with_subgraph(*nodes, inside):
    made = subgraph("relink-sub", [inside], (), [("out", "LORA_STACK", (inside["id"], 0))])
    return canvas(*nodes, node(30, "relink-sub", (), ("LORA_STACK",)), subgraphs=[made])


class Opened:
    """A workflow as the canvas shows it, and the panel beside it."""

    count = 0

    def __init__(self, frontend):
        self.page = frontend.page
        Opened.count += 1  # what was put away stays away while the page lives
        self.missing = f"stile{Opened.count}.safetensors"
        self.page.set_default_timeout(20_000)
        self.panel = self.page.get_by_role("region", name="LoRA files of this workflow")

    def open(self, workflow):
        self.page.evaluate(OPEN, json.dumps(workflow))
        return self

    @property
    def names(self):
        return [row["name"] for row in self.page.evaluate(ROWS)]

    def wait_for(self, names):
        for _ in range(200):
            if self.names == names:
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never {names}, but {self.names}")

    def button(self, name):
        return self.panel.get_by_role("button", name=name)


@pytest.fixture
def opened(shown):
    yield Opened(shown)
    shown.page.evaluate("() => document.querySelectorAll('.lw-relink').forEach((e) => e.remove())")
    assert shown.errors == []


def test_all_files_are_put_in_place_in_one_step_of_undo(opened, pins):
    moved = {"name": "gone/elsewhere.safetensors", **pins[KNOWN], "weighting": "IN=0.5"}
    missing = {"name": opened.missing, "model": 0.5}
    windows = {"name": WINDOWS.replace("/", "\\")}
    workflow = with_subgraph(
        rows_node(1, APPLY, moved, missing, {"name": LORA}),
        rows_node(2, STACK, missing),
        inside=rows_node(11, STACK, missing, windows),
    )
    opened.open(workflow).panel.wait_for()
    assert "1 LoRA file is missing, 2 are here under another name" in opened.panel.inner_text()
    assert opened.panel.get_by_role("listitem").count() == 3
    assert f"sha256 {pins[KNOWN]['sha256'][:12]}" in opened.panel.inner_text()
    before = opened.page.evaluate(ROWS)
    assert [row["name"] for row in before][:2] == [moved["name"], missing["name"]]

    opened.panel.get_by_role("combobox").select_option(LORA)
    opened.button("Use 3 files").click()
    opened.wait_for([KNOWN, LORA, LORA, LORA, LORA, WINDOWS])
    first, second, *_ = opened.page.evaluate(ROWS)
    assert first == {**before[0], "name": KNOWN}
    assert (second["model"], len(second["sha256"])) == (0.5, 64)
    assert opened.panel.count() == 0

    opened.page.evaluate(UNDO)
    opened.wait_for([row["name"] for row in before])
    assert opened.page.evaluate(ROWS) == before
    opened.page.wait_for_timeout(1000)
    assert opened.panel.count() == 0  # it was seen


def test_a_file_is_chosen_from_the_list(opened):
    opened.open(canvas(rows_node(1, STACK, {"name": f"nothing/like-{opened.missing}"})))
    opened.panel.wait_for()
    assert opened.button("Use 0 files").is_disabled()
    opened.button(f"Choose a file in place of nothing/like-{opened.missing}").click()
    opened.page.get_by_role("combobox", name="Search LoRAs").fill("known")
    opened.page.locator(".lw-found li").first.wait_for()
    opened.page.keyboard.press("Enter")
    opened.button("Use 1 file").click()
    opened.wait_for([KNOWN])


def test_undo_asks_for_nothing_again_and_what_was_chosen_stays(opened, server):
    workflow = canvas(rows_node(1, STACK, {"name": opened.missing}, {"name": LORA}))
    opened.open(workflow).panel.wait_for()
    opened.panel.get_by_role("combobox").select_option(LORA)
    asked = []
    note = lambda request: asked.append(request.url)  # noqa: E731
    opened.page.on("request", note)
    opened.page.evaluate(RENAME)
    opened.page.evaluate(UNDO)
    opened.page.wait_for_timeout(1500)
    assert opened.panel.get_by_role("combobox").input_value() == LORA
    assert [url for url in asked if "/resolve?" in url] == []
    opened.page.evaluate("() => app.refreshComboInNodes()")  # the R key
    opened.page.wait_for_timeout(1500)
    assert len([url for url in asked if "/resolve?" in url]) == 2
    assert opened.panel.get_by_role("combobox").input_value() == LORA
    path = server.loras / opened.missing
    path.write_bytes((server.loras / LORA).read_bytes())
    opened.page.evaluate("() => app.refreshComboInNodes()")
    opened.panel.wait_for(state="detached")
    path.unlink()
    opened.page.remove_listener("request", note)


def test_files_do_not_land_in_another_workflow(opened):
    rows = [{"name": opened.missing}]
    opened.open(canvas(rows_node(1, STACK, *rows))).panel.wait_for()
    opened.panel.get_by_role("combobox").select_option(LORA)
    held = []
    opened.page.route("**/lora_workbench/pin?*", lambda route: held.append(route))
    opened.button("Use 1 file").click()
    opened.open(canvas(rows_node(1, APPLY, *rows)))
    opened.page.unroute("**/lora_workbench/pin?*")
    for route in held:
        route.continue_()
    opened.page.get_by_text("Another workflow is open now").first.wait_for()
    assert held
    assert opened.names == [opened.missing]


def test_the_list_of_the_panel_has_pictures_as_the_settings_say(opened, server):
    picture = server.loras / KNOWN.replace(".safetensors", ".png")
    picture.write_bytes(b"")
    opened.open(canvas(rows_node(1, STACK, {"name": f"known/{opened.missing}"}))).panel.wait_for()
    for wanted in (True, False):
        opened.page.evaluate(PICTURES, wanted)
        opened.panel.get_by_role("button", name="Choose a file").click()
        opened.page.get_by_role("combobox", name="Search LoRAs").fill("known")
        opened.page.locator(".lw-found li").first.wait_for()
        assert (opened.page.locator(".lw-found img").count() == 1) is wanted
        opened.page.keyboard.press("Escape")
        opened.page.get_by_role("dialog").wait_for(state="detached")
    opened.page.evaluate(PICTURES, True)
    picture.unlink()


def test_a_panel_put_away_stays_away_until_it_is_asked_for(opened):
    workflow = canvas(rows_node(1, STACK, {"name": opened.missing}))
    opened.open(workflow).panel.wait_for()
    opened.button("Put away").click()
    opened.open(workflow).page.wait_for_timeout(1500)
    assert opened.panel.count() == 0
    opened.page.evaluate(FIND)
    opened.panel.wait_for()
    opened.open(canvas(rows_node(1, STACK, {"name": LORA}), rows_node(2, APPLY)))
    opened.page.wait_for_timeout(1500)
    assert opened.panel.count() == 0  # all files of this one are here
