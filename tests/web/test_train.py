"""Train LoRA on the canvas: its live panel while it runs, its report afterwards."""

import pytest
from PIL import Image

from ..comfy.checkpoints import SLIM
from ..comfy.comfy_source import cache_dir
from .conftest import missing
from .test_live import STEP, Probe

CHECKPOINT = "train.safetensors"
BUILD = """async ([checkpoint, seed]) => {
    app.graph.clear()
    await new Promise((done) => setTimeout(() => requestAnimationFrame(done)))
    const made = {}
    const add = (name, kind, x, values, links) => {
        const node = (made[name] = LiteGraph.createNode(kind))
        node.pos = [x, 60]
        app.graph.add(node)
        for (const [key, value] of Object.entries(values))
            node.widgets.find((widget) => widget.name === key).value = value
        for (const [key, [origin, slot]] of Object.entries(links))
            made[origin].connect(slot, node, node.inputs.findIndex(({ name }) => name === key))
    }
    add("loader", "CheckpointLoaderSimple", 900, { ckpt_name: checkpoint }, {})
    add("dataset", "LoraWorkbenchDataset", 1300,
        { folder: "dots", resolution: 64, bucket_step: 8 }, {})
    add("settings", "LoraWorkbenchTrainSettings", 1700, {
        preset: "quick look",
        overrides: "run.steps = 400\\noptimizer.warmup_steps = 1\\nadapter.rank = 2",
    }, {})
    add("train", "LoraWorkbenchTrain", 300, { seed, name: "dots" }, {
        model: ["loader", 0], clip: ["loader", 1], vae: ["loader", 2],
        dataset: ["dataset", 0], settings: ["settings", 0],
    })
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    app.graph.setDirtyCanvas(true, true)
}"""
REPORT = """() => [...document.querySelectorAll('.lw-report')]
    .map(({ textContent }) => textContent).find((text) => text.includes('of them now')) ?? ''"""


@pytest.fixture(scope="module", autouse=True)
def _files(server):
    source = cache_dir() / SLIM.file_name
    if not source.is_file():
        missing(f"{source} is missing: tests/comfy writes it")
    path = server.checkpoints / CHECKPOINT
    if not path.exists():
        path.symlink_to(source)
    folder = server.checkpoints.parents[1] / "input" / "dots"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 90, 160)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"dot {number}")


class Training(Probe):
    """A graph that trains."""

    def __init__(self, frontend, seed):
        self.frontend, self.page = frontend, frontend.page
        self.page.set_default_timeout(10_000)
        self.page.evaluate(BUILD, [CHECKPOINT, seed])
        self.root = self.page.locator(".lw-live")
        self.root.wait_for()
        self.settle()


def test_train_lora_shows_how_it_goes_and_then_its_report(shown, request):
    training = Training(shown, len(request.node.name))
    assert training.status == "Not run yet"
    training.start()
    end = 600
    while training.page.evaluate(STEP) < 2 and end:
        end -= 1
        training.page.wait_for_timeout(200)
    line = training.root.locator(".lw-live-line").inner_text()
    assert "loss 0." in line or "loss 1." in line
    assert "left" in line
    training.button("Stop and keep").click()
    assert training.ended() == "success"
    training.says("Stopped; what there was is kept")
    training.wait(f"() => ({REPORT})().length > 0")
    report = training.page.evaluate(REPORT)
    assert "stopped early; run again to go on" in report
    assert "dots-step-" in report
    assert shown.errors == []
