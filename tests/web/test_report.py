"""What a node says after a run, on the node, in both of ComfyUI's renderers."""

import json

from lora_workbench.nodes import NODES

from ..workflow_examples import canvas, node
from .conftest import HEADER, LORA

BOX = "textarea[readonly]"
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
    tracker.captureCanvasState()
    const titles = [(app.graph.nodes[0].title = "renamed")]
    tracker.captureCanvasState()
    await tracker.undo()
    return [...titles, app.graph.nodes[0].title]
}"""
WIDTHS = """() => app.graph.nodes.map((node) => {
    const context = app.canvas.canvas.getContext("2d")
    context.font = app.canvas.title_text_font
    return [node.title, node.size[0], context.measureText(node.title).width]
})"""


def test_the_report_stands_on_the_node_after_a_run(shown):
    prompt, _ = shown.prompt(LOAD_AND_INSPECT)
    box = shown.page.locator(BOX)
    assert box.input_value() == ""
    shown.run()
    shown.page.wait_for_function(f"document.querySelector('{BOX}').value")
    report = box.input_value()
    assert report.startswith(LORA)
    assert f"title: {HEADER['modelspec.title']}" in report
    assert box.is_visible()
    assert not box.is_editable()
    area = box.bounding_box()
    assert area["width"] > 100
    assert area["height"] > 40
    saved = json.loads(shown.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    assert HEADER["modelspec.title"] not in json.dumps(saved)
    assert [item["widgets_values"] for item in saved["nodes"]] == [[LORA, 1, 1, "", ""], []]
    assert shown.prompt(saved)[0] == prompt
    assert prompt["2"]["inputs"] == {"lora_model": ["1", 1]}
    assert shown.page.locator(BOX).input_value() == ""  # a workflow opens with an empty box
    assert shown.errors == []


def test_the_report_is_still_there_after_undo(shown):
    shown.prompt(LOAD_AND_INSPECT)
    shown.run()
    shown.page.wait_for_function(f"document.querySelector('{BOX}').value")
    assert shown.page.evaluate(RENAME_AND_UNDO) == ["renamed", "Load LoRA"]
    assert shown.page.locator(BOX).input_value().startswith(LORA)


def test_a_fresh_node_shows_its_whole_title(shown):
    shown.canvas_of([kind.__name__ for kind in NODES])
    for title, width, text in shown.page.evaluate(WIDTHS):
        assert width > text + 150, title  # the fold sign, and the badge with the pack's name
