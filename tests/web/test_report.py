"""What a node says after a run, on the node, in both of ComfyUI's renderers."""

import json

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.nodes import NODES
from lora_workbench.nodes.report_form import IN_PART, Report, Section, Unused

from ..workflow_examples import canvas, node
from .conftest import HEADER, LORA
from .test_rows import FRESH

BOX = ".lw-report"
FILLED = "() => document.querySelector('.lw-report h4')"
LOAD_AND_INSPECT = canvas(
    node(
        1,
        "LoraWorkbenchLoad",
        inputs=[("lora_stack", "LORA_STACK")],
        outputs=["LORA_STACK", "LORA_MODEL", "STRING"],
        values=[LORA, 1, 1, "", ""],
    ),
    node(
        2,
        "LoraWorkbenchInspect",
        inputs=[
            ("lora_model", "LORA_MODEL", (1, 1)),
            *(("lora_stack", "LORA_STACK"), ("model", "MODEL"), ("clip", "CLIP")),
        ],
        outputs=["STRING"],
    ),
)
RENAME_AND_UNDO = """async () => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
    const capture = () => tracker.captureCanvasState?.() ?? tracker.checkState?.()  // 1.27
    capture()
    const titles = [(app.graph.nodes[0].title = "renamed")]
    capture()
    await tracker.undo()
    return [...titles, app.graph.nodes[0].title]
}"""
FAIL = """([text, prompt]) => window.comfyAPI.api.api.dispatchCustomEvent("execution_error", {
    prompt_id: prompt, node_id: String(app.graph.nodes.at(-1).id),
    node_type: app.graph.nodes.at(-1).type, executed: [], exception_message: text,
    exception_type: "lora_workbench.LoraError",
    traceback: [], current_inputs: {}, current_outputs: [],
})"""
CLOSE_DIALOGS = """() => {
    for (const button of document.querySelectorAll(".p-dialog-close-button")) button.click()
}"""
# The canvas listens to `copy` at the document, where it would take the nodes instead.
CATCH_COPIES = """() => {
    window.copied = window.selectionCopied = null
    navigator.clipboard.writeText = async (text) => { window.copied = text }
    let reached = false
    document.addEventListener("copy", () => (reached = true), { once: true })
    window.addEventListener("copy", () => {
        const word = getSelection().toString().trim()
        setTimeout(() => (window.selectionCopied = [word, reached]))
    }, { capture: true, once: true })
}"""
IN_VIEW = """() => {
    const node = app.graph.getNodeById(2)
    node.pos = [420, 60]
    node.setSize([440, 400])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    app.graph.setDirtyCanvas(true, true)
}"""
WIDTHS = """() => app.graph.nodes.map((node) => {
    const context = app.canvas.canvas.getContext("2d")
    context.font = app.canvas.title_text_font
    return [node.title, node.size[0], context.measureText(node.title).width]
})"""


def run_inspect(shown):
    shown.page.set_default_timeout(10_000)
    prompt, _ = shown.prompt(LOAD_AND_INSPECT)
    shown.run()
    shown.wait(FILLED)
    shown.page.evaluate(IN_VIEW)
    shown.page.wait_for_timeout(300)  # the canvas lays its elements out frame by frame
    return prompt


def test_the_report_stands_on_the_node_after_a_run(shown):
    prompt, _ = shown.prompt(LOAD_AND_INSPECT)
    box = shown.page.locator(BOX)
    assert box.inner_text() == "After a run: what happened"
    shown.run()
    shown.wait(FILLED)
    assert box.get_by_role("status").inner_text().endswith("1 LoRA")
    assert box.get_by_role("heading", name=LORA).is_visible()
    names, values = box.locator("dt").all_inner_texts(), box.locator("dd").all_inner_texts()
    facts = dict(zip(names, values[1:], strict=True))  # the first says itself what it is
    assert values[0] == "10 modules in 30 tensors: 10 lora"
    assert facts["title"] == HEADER["modelspec.title"]
    assert facts["made for"] == "sd15 (by names and shapes)"
    area = box.bounding_box()
    assert area["width"] > 100
    assert area["height"] > 40
    saved = json.loads(shown.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    assert HEADER["modelspec.title"] not in json.dumps(saved)
    assert [item["widgets_values"] for item in saved["nodes"]] == [[LORA, 1, 1, "", ""], []]
    assert shown.prompt(saved)[0] == prompt
    assert prompt["2"]["inputs"] == {"lora_model": ["1", 1]}
    assert shown.page.locator(BOX).inner_text() == "After a run: what happened"
    assert shown.errors == []


def test_the_chart_of_a_lora_stands_in_its_report(shown):
    run_inspect(shown)
    box = shown.page.locator(BOX)
    chart = box.get_by_role("img", name=f"{LORA}: norm of what is added, by block")
    bars = chart.locator("rect").count()
    assert f"{bars} values, highest" in chart.get_attribute("aria-label")
    assert chart.is_visible()
    box.get_by_text("Values", exact=True).click()
    assert box.get_by_role("row").count() == bars > 1


def test_the_report_is_still_there_after_undo(shown):
    run_inspect(shown)
    assert shown.page.evaluate(RENAME_AND_UNDO) == ["renamed", "Load LoRA"]
    shown.wait(FILLED)
    assert LORA in shown.page.locator(BOX).inner_text()


def test_the_report_is_copied_whole(shown):
    """The clipboard itself is not asked: reading it was seen to wait for ever."""
    run_inspect(shown)
    shown.page.evaluate(CATCH_COPIES)
    shown.page.get_by_role("button", name="Copy", exact=True).click()
    shown.wait("() => document.querySelector('.lw-report button').textContent === 'Copied'")
    text = shown.page.evaluate("() => window.copied")
    assert text.startswith(f"{LORA}\n   ")
    assert f"   title: {HEADER['modelspec.title']}" in text


def test_selected_text_is_copied_and_no_node(shown):
    run_inspect(shown)
    shown.page.evaluate(CATCH_COPIES)
    shown.page.locator(".lw-report dd", has_text=HEADER["modelspec.title"]).dblclick(
        position={"x": 8, "y": 6}
    )
    word = shown.page.evaluate("() => getSelection().toString().trim()")
    assert word in HEADER["modelspec.title"].split()
    shown.page.evaluate("() => document.execCommand('copy')")  # the keys hung a headless browser
    shown.wait("() => window.selectionCopied")
    assert shown.page.evaluate("() => window.selectionCopied") == [word, False]


def test_keys_in_the_report_are_not_the_canvas_s(shown):
    run_inspect(shown)
    shown.page.locator(BOX).focus()
    for key in ("Delete", "Control+m", "End"):
        shown.page.keyboard.press(key)
    assert shown.page.evaluate("() => app.graph.nodes.map(({ mode }) => mode)") == [0, 0]


def give(shown, kind, report):
    """A node's report, as its event brings it."""
    shown.canvas_of([kind])
    shown.page.evaluate(FRESH, kind)
    shown.page.locator(BOX).wait_for()
    output = json.loads(json.dumps(report.to_ui()))
    shown.page.evaluate("(output) => app.graph.nodes[0].onExecuted(output)", output)
    return shown.page.locator(BOX)


def test_tensors_that_match_nothing_are_folded_away(shown):
    keys = tuple(f"lora_unet_x{number}.alpha" for number in range(40))
    unused = Unused("unmatched", "no such module", keys)
    section = Section("a", "model 1", IN_PART, (("weighting", "IN=0"),), (unused,), ("dull",))
    report = Report("1 LoRA applied", (("undo", "file"),), (section,), ("bright",))
    box = give(shown, "LoraWorkbenchApply", report)
    assert box.get_by_role("status").inner_text().endswith("1 LoRA applied")
    assert box.get_by_role("img", name="In part").count() == 2  # of the whole, and of the LoRA
    assert box.locator("dl").all_inner_texts() == ["undo\nfile", "weighting\nIN=0"]
    assert box.locator("p").all_inner_texts() == ["Note: dull", "Note: bright"]
    folded = box.locator("details")
    assert folded.locator("summary").inner_text() == "40 tensors unmatched: no such module"
    assert not folded.get_by_role("listitem").first.is_visible()
    folded.locator("summary").focus()
    shown.page.keyboard.press("Enter")
    assert folded.get_by_role("listitem").nth(39).inner_text() == keys[39]


def fail(shown, text, prompt="none"):
    """The error of a run of the last node; that of no prompt counts as one of this canvas."""
    shown.page.evaluate(FAIL, [text, prompt])


def headlined(text):
    status = "document.querySelector('.lw-report [role=\"status\"]')"
    return f"() => {status}?.textContent.endsWith('{text}')"


def test_undo_shows_the_error_and_not_the_output_before_it(shown):
    run_inspect(shown)
    fail(shown, "It broke.")
    shown.wait(headlined("It broke."))
    shown.page.evaluate(CLOSE_DIALOGS)
    assert shown.page.evaluate(RENAME_AND_UNDO) == ["renamed", "Load LoRA"]
    shown.wait(headlined("It broke."))
    shown.page.wait_for_timeout(500)
    assert shown.page.locator(BOX).get_by_role("status").inner_text().endswith("It broke.")
    assert shown.errors == []


def test_the_error_of_another_workflow_s_run_is_not_shown(shown):
    box = give(shown, "LoraWorkbenchMerge", Report("2 LoRAs merged"))
    asked = []

    def answer(route):
        asked.append(route.request.url)
        prompt = route.request.url.rsplit("/", 1)[1]
        own = shown.page.evaluate("() => (app.rootGraph ?? app.graph).id")
        workflow = {"id": own if prompt == "own" else "11111111-1111-4111-8111-111111111111"}
        extra = {"extra_pnginfo": {"workflow": workflow}}
        route.fulfill(json={prompt: {"prompt": [0, prompt, {}, extra, []]}})

    shown.page.route("**/history/*", answer)
    fail(shown, "Broken elsewhere.", "other")
    shown.page.wait_for_timeout(1000)
    assert asked
    assert box.get_by_role("status").inner_text().endswith("2 LoRAs merged")
    fail(shown, "Broken here.", "own")
    shown.wait(headlined("Broken here."))
    shown.page.unroute("**/history/*")
    shown.page.evaluate(CLOSE_DIALOGS)


def test_an_exception_without_a_message_is_told_by_its_type(shown):
    give(shown, "LoraWorkbenchMerge", Report("2 LoRAs merged"))
    shown.page.evaluate(FRESH, "LoraWorkbenchMerge")
    shown.page.locator(BOX).wait_for()
    fail(shown, "")
    shown.wait(headlined("lora_workbench.LoraError"))
    shown.page.evaluate(CLOSE_DIALOGS)


def test_an_error_stands_on_the_node_with_its_fix_apart(shown):
    box = give(shown, "LoraWorkbenchMerge", Report("2 LoRAs merged"))
    error = LoraError("a does not fit: wrong base.", {"Base": "SDXL"}, "choose another.")
    fail(shown, f"{error}\n")
    shown.wait("() => document.querySelector('.lw-fix')")
    assert box.get_by_role("status").inner_text().endswith("a does not fit: wrong base.")
    assert box.get_by_role("img", name="Wrong").is_visible()
    assert box.locator(".lw-fix").inner_text() == "Fix: choose another."
    assert box.locator("dl").inner_text() == "Base\nSDXL"
    shown.page.evaluate(CLOSE_DIALOGS)


def test_a_fresh_node_shows_its_whole_title(shown):
    shown.canvas_of([kind.__name__ for kind in NODES])
    for title, width, text in shown.page.evaluate(WIDTHS):
        assert width > text + 150, title  # the fold sign, and the badge with the pack's name
