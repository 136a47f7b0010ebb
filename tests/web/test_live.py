"""The live panel of a long-running node, in both of ComfyUI's renderers."""

import json

import pytest

from .conftest import wait_until_ready
from .test_rows import FRESH, UNDO, Editor

STEPS = 1000  # a minute, when nobody stops it
START = """async () => {
    const { api } = window.comfyAPI.api
    window.ended = null
    for (const kind of ["success", "interrupted", "error"])
        api.addEventListener(`execution_${kind}`, () => (window.ended = kind), { once: true })
    await app.queuePrompt(0, 1)
}"""
SET_UP = """([steps, label]) => {
    const node = app.graph.nodes.at(-1)
    node.widgets.find(({ name }) => name === "steps").value = steps
    node.widgets.find(({ name }) => name === "label").value = label
}"""
ANOTHER = """() => {
    const node = LiteGraph.createNode("LiveProbe")
    node.pos = [800, 60]
    app.graph.add(node)
}"""
SAVED = "() => JSON.stringify(app.graph.serialize())"
LOAD = "async (text) => { await app.loadGraphData(JSON.parse(text)) }"
OUTPUT = "() => app.nodeOutputs[app.graph.nodes[0].id].text"
STEP = "() => document.querySelector('.lw-live progress')?.value ?? 0"
PATH = "() => document.querySelector('.lw-curve')?.getAttribute('d') ?? ''"


class Probe(Editor):
    """One fresh node with a live panel."""

    def __init__(self, frontend, steps=STEPS, label="probe"):
        self.frontend, self.page = frontend, frontend.page
        self.page.set_default_timeout(10_000)
        self.page.evaluate(FRESH, "LiveProbe")
        self.page.evaluate(SET_UP, [steps, label])
        self.root = self.page.locator(".lw-live")
        self.root.wait_for()
        self.settle()

    def start(self):
        self.page.evaluate(START)

    def until_step(self, step):
        self.wait(f"(least) => ({STEP})() >= least", step)

    @property
    def status(self):
        return self.root.get_by_role("status").inner_text()

    def says(self, text):
        self.wait(
            """(text) => [...document.querySelectorAll('.lw-live [role="status"]')]
                .some((line) => line.textContent === text)""",
            text,
        )

    def ended(self):
        self.wait("() => window.ended")
        return self.page.evaluate("() => window.ended")

    def stop(self):
        self.page.evaluate("() => window.comfyAPI.api.api.interrupt()")


@pytest.fixture
def probe(shown):
    made = Probe(shown)
    yield made
    made.page.evaluate("() => document.querySelector('dialog[open]')?.close()")
    made.stop()
    made.wait("async () => !(await (await fetch('/queue')).json()).queue_running.length")
    assert shown.errors == []


def test_a_panel_that_has_not_run_says_so_and_is_not_saved(probe):
    assert probe.status == "Not run yet"
    assert not probe.button("Stop and keep").is_enabled()
    assert not probe.button("Stop").last.is_enabled()
    output, workflow = probe.frontend.current_prompt()
    ((entry),) = output.values()
    assert entry["inputs"] == {"steps": STEPS, "label": "probe"}
    assert [node["widgets_values"] for node in workflow["nodes"]] == [[STEPS, "probe"]]


def test_progress_chart_and_pictures_grow_and_what_there_is_is_kept(probe):
    probe.start()
    probe.until_step(8)
    before, path = probe.page.evaluate(STEP), probe.page.evaluate(PATH)
    probe.until_step(before + 3)
    assert len(probe.page.evaluate(PATH)) > len(path)
    assert "left · probe" in probe.root.locator(".lw-live-line").inner_text()
    chart = probe.root.get_by_role("img", name="Chart of loss, validation")
    assert "loss: from 1 at 1 to 0." in chart.get_attribute("aria-label")
    probe.until_step(12)
    probe.root.get_by_role("button", name="Enlarge step 11").click()
    dialog = probe.page.get_by_role("dialog", name="step 11")
    probe.wait("() => document.querySelector('.lw-large').naturalWidth === 64")
    probe.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    probe.button("Stop and keep").click()
    assert probe.ended() == "success"
    probe.says("Stopped; what there was is kept")
    (text,) = probe.page.evaluate(OUTPUT)
    kept = int(text.split()[1])
    assert before < kept < STEPS
    assert probe.page.evaluate(STEP) == kept  # the last event is not lost
    assert not probe.button("Stop and keep").is_enabled()


def test_a_server_that_does_not_answer_is_told_on_the_panel(probe):
    refusal = {"error": {"headline": "Nothing is known.", "fix": "restart.", "facts": {}}}
    refuse = lambda route: route.fulfill(status=500, json=refusal)  # noqa: E731
    probe.page.route("**/lora_workbench/live?*", refuse)
    probe.page.evaluate("() => window.comfyAPI.api.api.dispatchCustomEvent('reconnected')")
    probe.says("Nothing is known. Fix: restart.")
    probe.page.unroute("**/lora_workbench/live?*")
    uncaught = [error for error in probe.frontend.errors if "Failed to load resource" not in error]
    probe.frontend.errors.clear()  # the browser tells of the 500 that was asked for
    assert uncaught == []


def test_stop_interrupts(probe):
    probe.start()
    probe.until_step(3)
    probe.root.get_by_role("button", name="Stop", exact=True).click()
    assert probe.ended() == "interrupted"
    probe.says("Stopped")
    assert not probe.root.get_by_role("button", name="Stop", exact=True).is_enabled()


def test_the_panel_goes_on_after_undo(probe):
    """On a canvas that was cleared, too: it has an id of zeros."""
    probe.start()
    probe.until_step(3)
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    probe.page.evaluate(
        f"""() => {{
            const remember = {tracker}.captureCanvasState ?? {tracker}.checkState
            remember.call({tracker})
            app.graph.nodes[0].title = "renamed"
            remember.call({tracker})
        }}"""
    )
    probe.page.evaluate(UNDO)
    assert probe.page.evaluate("() => app.graph.nodes[0].title") == "LiveProbe"
    probe.until_step(probe.page.evaluate(STEP) + 3)
    assert probe.root.get_by_role("listitem").count() > 0


def test_the_panel_is_there_after_another_workflow_and_back(probe):
    probe.start()
    probe.until_step(3)
    saved = json.loads(probe.page.evaluate(SAVED))
    other = {**saved, "id": "11111111-1111-4111-8111-111111111111"}
    probe.page.evaluate(LOAD, json.dumps(other))
    probe.settle()
    assert probe.status == "Not run yet"  # the same node id in another workflow
    probe.page.evaluate(LOAD, json.dumps(saved))
    probe.until_step(8)
    probe.stop()
    probe.says("Stopped")


def test_the_panel_is_there_after_the_page_is_loaded_anew(probe, request):
    nodes_2 = "nodes 2.0" in request.node.name
    probe.start()
    probe.until_step(8)
    saved = probe.page.evaluate(SAVED)
    probe.page.reload()
    wait_until_ready(probe.page)
    early = "Unknown message type lora_workbench.live"  # before any extension is there
    probe.frontend.errors[:] = [told for told in probe.frontend.errors if early not in told]
    probe.frontend.choose_renderer(nodes_2)
    probe.page.evaluate(LOAD, saved)
    probe.until_step(8)
    assert "M" in probe.page.evaluate(PATH)
    probe.until_step(probe.page.evaluate(STEP) + 3)  # and goes on
    probe.button("Stop and keep").click()
    probe.says("Stopped; what there was is kept")


def test_two_nodes_have_a_panel_each(probe):
    probe.page.evaluate(SET_UP, [4, "short"])
    probe.page.evaluate(ANOTHER)
    probe.page.evaluate(SET_UP, [6, "longer"])
    probe.settle()
    probe.start()
    assert probe.ended() == "success"
    probe.wait(
        """() => [...document.querySelectorAll('.lw-live-line')]
            .map(({ textContent }) => textContent).sort().join()
            === 'step 4 of 4 · short,step 6 of 6 · longer'"""
    )


def test_a_node_in_a_subgraph_has_its_panel(probe):
    inner = probe.page.evaluate(
        """() => {
            const { node } = app.graph.convertToSubgraph(new Set([app.graph.nodes[0]]))
            app.canvas.setGraph(node.subgraph)
            return `${node.id}:${node.subgraph.nodes[0].id}`
        }"""
    )
    probe.settle()
    probe.start()
    probe.until_step(4)
    assert ":" in inner
    nodes = probe.page.evaluate("async () => (await (await fetch('/lora_workbench/live')).json())")
    assert inner in [panel["node"] for panel in nodes["panels"]]
    probe.button("Stop and keep").click()
    probe.says("Stopped; what there was is kept")
    probe.page.evaluate("() => app.canvas.setGraph(app.rootGraph ?? app.graph)")
