"""A workflow of the canvas: saved, opened, exported and run on both hosts, with equal patches."""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from lora_workbench.lora_core.files.safetensors_file import open_safetensors

from ..comfy.comfy_source import cache_dir, comfyui_path
from .test_rows import Editor

CHECKPOINT, STYLE, DETAIL = "slim.safetensors", "slim-ink.safetensors", "slim-detail.safetensors"
APPLY, STACK, SAVE = "LoraWorkbenchApply", "LoraWorkbenchStack", "LoraWorkbenchSaveModel"
BUILD = """async ([checkpoint]) => {
    await app.refreshComboInNodes()
    const make = (kind, pos, values = {}) => {
        const node = LiteGraph.createNode(kind)
        node.pos = pos
        app.graph.add(node)
        for (const [name, value] of Object.entries(values))
            node.widgets.find((widget) => widget.name === name).value = value
        return node
    }
    const apply = app.graph.nodes[0]
    apply.pos = [80, 60]
    const stack = make("LoraWorkbenchStack", [560, 60])
    const loader = make("CheckpointLoaderSimple", [80, 560], { ckpt_name: checkpoint })
    const save = make("LoraWorkbenchSaveModel", [560, 400], { filename: "merged", dtype: "fp32" })
    const connect = (from, slot, to, name) => from.connect(slot, to, to.findInputSlot(name))
    connect(loader, 0, apply, "model")
    connect(loader, 1, apply, "clip")
    connect(stack, 0, apply, "lora_stack")
    connect(apply, 0, save, "model")
    connect(apply, 1, save, "clip")
    connect(loader, 2, save, "vae")
    app.graph.setDirtyCanvas(true, true)
}"""
MARK = """() => {
    for (const node of app.graph.nodes) {
        const rows = node.widgets?.find(({ name }) => name === "rows")
        if (rows) rows.element.dataset.of = node.type
    }
}"""
ROWS = """(kind) => app.graph.nodes.find(({ type }) => type === kind)
    .widgets.find(({ name }) => name === "rows").value"""
COMMAND = "(id) => app.extensionManager.command.execute(id)"
SETTING = "([id, value]) => app.extensionManager.setting.set(id, value)"
OPEN = """async (text) => {
    app.graph.clear()
    const frame = () => new Promise((done) => setTimeout(() => requestAnimationFrame(done)))
    await frame()
    await app.handleFile(new File([text], "saved.json", { type: "application/json" }))
    await frame()
}"""
QUEUE = """async () => {
    const { api } = window.comfyAPI.api
    const ended = new Promise((done, fail) => {
        api.addEventListener("execution_success", ({ detail }) => done(detail.prompt_id))
        api.addEventListener("execution_error", ({ detail }) => fail(detail.exception_message))
        setTimeout(() => fail("no run ended, or the prompt was refused"), 600000)
    })
    await app.extensionManager.command.execute("Comfy.QueuePrompt")
    return await ended
}"""


@pytest.fixture(scope="module", autouse=True)
def _files(server):
    """The checkpoint and its LoRAs in ComfyUI's folders, for this module alone."""
    script = Path(__file__).parent / "slim_files.py"
    paths = (server.checkpoints / CHECKPOINT, server.loras / STYLE, server.loras / DETAIL)
    command = [sys.executable, script, comfyui_path(), cache_dir(), *paths]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    yield
    for path in paths:  # other tests count files
        path.unlink()


class Canvas(Editor):
    """The graph of a checkpoint, a stack, Apply LoRAs and Save Merged Model."""

    def __init__(self, frontend):
        super().__init__(frontend)
        self.page.evaluate(SETTING, ["Comfy.PromptFilename", False])
        self.page.evaluate(BUILD, [CHECKPOINT])
        self.page.evaluate(MARK)
        self.settle()

    def on(self, kind):
        """Work with the rows of another node."""
        self.root = self.page.locator(f'[data-of="{kind}"]')
        return self

    def add_file(self, name):
        self.button("Add LoRA").click()
        self.page.get_by_role("combobox", name="Search LoRAs").fill(name.split(".")[0])
        self.page.locator(".lw-found li").first.wait_for()
        self.page.keyboard.press("Enter")
        self.root.get_by_role("spinbutton", name=f"Strength of {name}", exact=True).wait_for()

    def type_in(self, field, text):
        field.fill(text)
        self.page.keyboard.press("Enter")

    def rows_of(self, kind):
        return json.loads(self.page.evaluate(ROWS, kind))["rows"]

    def wait_for_pins(self, kind, count):
        self.wait(f"(kind) => ({ROWS})(kind).split('sha256').length === {count + 1}", kind)

    def downloaded(self, command):
        with self.page.expect_download() as download:
            self.page.evaluate(COMMAND, command)
        return json.loads(Path(download.value.path()).read_text())


def fill_rows(canvas):
    """Two LoRAs and one that is off on Apply LoRAs, one on the stack, all by the row editor."""
    canvas.on(APPLY).add_file(STYLE)
    canvas.type_in(canvas.strength(STYLE), "0.8")
    canvas.button(f"CLIP strength of {STYLE}").click()
    canvas.type_in(canvas.strength(STYLE, "CLIP strength"), "-0.25")
    canvas.add_file(DETAIL)
    canvas.type_in(canvas.strength(DETAIL), "0.5")
    canvas.button(f"Weighting of {DETAIL}").click()
    field = canvas.root.get_by_role("textbox", name=f"Weighting of {DETAIL}", exact=True)
    canvas.type_in(field, "IN00-03=0.5, te=0.25")
    canvas.button(f"Duplicate {STYLE}").click()
    canvas.root.get_by_role("checkbox", name=f"{STYLE} on").nth(1).uncheck()
    canvas.wait_for_pins(APPLY, 3)
    canvas.on(STACK).add_file(DETAIL)
    canvas.type_in(canvas.strength(DETAIL), "0.3")
    canvas.wait_for_pins(STACK, 1)


def briefly(rows):
    keys = ("name", "on", "model", "clip", "weighting")
    return [tuple(row.get(key) for key in keys) for row in rows]


APPLY_ROWS = [
    (STYLE, True, 0.8, -0.25, None),
    (STYLE, False, 0.8, -0.25, None),
    (DETAIL, True, 0.5, None, "IN00-03=0.5, te=0.25"),
]
STACK_ROWS = [(DETAIL, True, 0.3, None, None)]


@pytest.fixture
def canvas(shown):
    made = Canvas(shown)
    fill_rows(made)
    yield made
    assert shown.errors == []


def without_titles(prompt):
    """Class and inputs of each node; newer frontends add to ``_meta`` what no host reads."""
    return {
        key: {name: value for name, value in entry.items() if name != "_meta"}
        for key, entry in prompt.items()
    }


def rows_in(prompt):
    found = {entry["class_type"]: entry["inputs"].get("rows") for entry in prompt.values()}
    return [briefly(json.loads(found[kind])["rows"]) for kind in (APPLY, STACK)]


def get(server, path):
    with urllib.request.urlopen(f"{server.url}/{path}") as answer:
        return json.load(answer)


def post(server, path, **body):
    data = json.dumps(body).encode()
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/{path}", data)).close()


def forget(server):
    """Drop every result, so that the next run does all of it again."""
    post(server, "free", unload_models=True, free_memory=True)


def received_prompts(server):
    """One may pass from the queue to the history between the two answers: each counts once."""
    queue, history = get(server, "queue"), get(server, "history")
    entries = [*queue["queue_running"], *queue["queue_pending"]]
    entries += [entry["prompt"] for entry in history.values()]
    return list({entry[1]: entry[2] for entry in entries}.values())


def wait_until(canvas, is_so):
    for _ in range(600):
        if is_so():
            return
        canvas.page.wait_for_timeout(100)
    raise AssertionError("never so in a minute")


def in_history(server, prompt_id):
    """The prompt that the server received, and what its nodes showed: (class, text)."""
    entry = get(server, f"history/{prompt_id}")[prompt_id]
    prompt = entry["prompt"][2]
    shown = {
        prompt[key]["class_type"]: "".join(out["text"]) for key, out in entry["outputs"].items()
    }
    return prompt, shown


def run(path, *options):
    """The command, in a process of its own: Playwright has this one's event loop."""
    command = [sys.executable, "-m", "lora_workbench.headless.cli", "run", path, "--json", *options]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def shown_by(document, prompt):
    return {prompt[out["node"]]["class_type"]: out["text"] for out in document["outputs"]}


def counts_in(report):
    return re.findall(r"(\S+) · model (\S+) · clip (\S+) · (\d+ / \d+) tensors used", report)


def saved_tensors(receipt):
    file = open_safetensors(Path(receipt.splitlines()[0]))
    return file.read_many(file.tensors)


def assert_same_patches(expected, found):
    """Bit for bit; ComfyUI holds a text encoder in fp16, the embedded host in fp32."""
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        pair = tensor, found[key].reshape(tensor.shape)
        if key.startswith("cond_stage_model."):
            pair = pair[0].half(), pair[1].half()
        assert torch.equal(*pair), key


def reopened(canvas):
    """Save, open what was saved, and export: the workflow, and the prompt before and after."""
    saved = canvas.downloaded("Comfy.ExportWorkflow")
    before = canvas.downloaded("Comfy.ExportWorkflowAPI")
    canvas.page.evaluate(OPEN, json.dumps(saved))
    canvas.wait("() => app.graph.nodes.length === 4")
    return saved, before, canvas.downloaded("Comfy.ExportWorkflowAPI")


def test_what_is_saved_opened_exported_and_queued_has_the_same_rows(canvas, server):
    assert briefly(canvas.rows_of(APPLY)) == APPLY_ROWS
    _, before, exported = reopened(canvas)
    assert without_titles(exported) == without_titles(before)
    assert rows_in(exported) == [APPLY_ROWS, STACK_ROWS]
    wait_until(canvas, lambda: not get(server, "queue")["queue_running"])  # of an earlier test
    post(server, "history", clear=True)
    canvas.page.evaluate(COMMAND, "Comfy.QueuePrompt")
    wait_until(canvas, lambda: received_prompts(server))
    received = received_prompts(server)
    post(server, "interrupt")
    assert received == [exported]


def test_the_canvas_the_command_and_the_embedded_host_patch_alike(frontend, server, tmp_path):
    canvas = Canvas(frontend)
    fill_rows(canvas)
    saved, _, exported = reopened(canvas)
    forget(server)
    received, on_canvas = in_history(server, canvas.page.evaluate(QUEUE))
    assert received == exported
    api, ui = tmp_path / "graph.api.json", tmp_path / "graph.json"
    api.write_text(json.dumps(exported))
    ui.write_text(json.dumps(saved))
    forget(server)
    runs = [run(api, "--comfyui", server.url, "--output", tmp_path / "remote")]
    for path in (api, ui):
        output = tmp_path / f"of {path.name}"
        runs.append(run(path, "--models", server.loras.parent, "--output", output))
    shown = [on_canvas, *(shown_by(document, exported) for document in runs)]

    counts = [counts_in(each[APPLY]) for each in shown]
    assert [name for name, *_ in counts[0]] == [DETAIL, STYLE, DETAIL]
    assert len({used for *_, used in counts[0]}) == 2  # the second file has more than matches
    assert counts == [counts[0]] * 4
    expected = saved_tensors(on_canvas[SAVE])
    for each in shown[1:]:
        assert_same_patches(expected, saved_tensors(each[SAVE]))
