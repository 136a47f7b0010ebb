"""Draws the pictures of the help pages: `make help-pictures` writes web/docs/img/<node>.png.

Each is a small graph around the node on the real canvas, run where that shows something. The model
is the slim SD1.5 that tests/comfy keeps in the cache; the LoRAs are random.
"""

import io
import json
import time

import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open

from ..comfy.checkpoints import SLIM
from ..comfy.comfy_source import REPOSITORY, cache_dir
from ..lora_files import Module, is_attention, modules_of_shapes, unet_modules, write_lora

FOLDER = REPOSITORY / "web" / "docs" / "img"
CHECKPOINT = "sd15.safetensors"
COLOURS = 64
WINDOW = {"width": 1600, "height": 1500}
CORNER = (330, 150)  # of the graph in the window: below the tabs, beside the menus
MARGIN = 16
# A text of its own for each file: the words that it was trained with.
LORAS = {
    "style.safetensors": {"5_ink": {"ink wash": 9, "paper": 2}},
    "detail.safetensors": {"5_detail": {"fine lines": 12}},
}
LOADER = ("loader", "CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}, {})
MODEL = {"model": "loader.MODEL", "clip": "loader.CLIP"}


def rows(*rows):
    return {"rows": json.dumps([dict(row) for row in rows])}


STYLE = {"name": "style.safetensors", "model": 0.8, "weighting": "IN04-08=0.5, attn2=0.8"}
DETAIL = {"name": "detail.safetensors", "model": 0.5, "clip": 0.3}
STACK = ("stack", "LoraWorkbenchStack", rows({**STYLE, "weighting": None}, DETAIL), {})
MERGE = ("merge", "LoraWorkbenchMerge", {}, {**MODEL, "lora_stack": "load.lora_stack"})
TAGS = "a lighthouse at dusk, <lora:style:0.8>, <lora:detail:0.5:0.3> oil painting"


def load(name="style.safetensors", **values):
    # The frontend gives a fresh text box what a node of the same id held before, unless it is set.
    values = {"lora_name": name, "strength_model": 0.8, "weighting": "", **values}
    return ("load", "LoraWorkbenchLoad", values, {})


def run(source):
    """A node outside the picture that makes the graph run; it shows any value."""
    return ("end", "PreviewAny", {}, {"source": source})


DATASET = (
    "dataset",
    "LoraWorkbenchDataset",
    {"folder": "lamps", "resolution": 128, "bucket_step": 8, "trigger_word": "oil lamp"},
    {},
)
SETTINGS = (
    "settings",
    "LoraWorkbenchTrainSettings",
    {"preset": "quick look", "overrides": "run.steps = 24"},
    {},
)
TRAIN = (
    "train",
    "LoraWorkbenchTrain",
    {"name": "lamps"},
    {**MODEL, "vae": "loader.VAE", "dataset": "dataset.dataset", "settings": "settings.settings"},
)


# Picture -> nodes from top to bottom: (name, class, widget values, inputs from "name.output").
GRAPHS = {
    "LoraWorkbenchApply": [
        LOADER,
        ("apply", "LoraWorkbenchApply", rows(STYLE, DETAIL), MODEL),
        run("apply.report"),
    ],
    "LoraWorkbenchLoad": [
        load(weighting="IN04-08=0.5, attn2=0"),
        (
            "apply",
            "LoraWorkbenchApply",
            rows(DETAIL),
            {"lora_stack": "load.lora_stack"},
        ),
    ],
    "LoraWorkbenchStack": [
        STACK,
        ("text", "PreviewAny", {}, {"source": "stack.text"}),
    ],
    "LoraWorkbenchAdd": [
        load(),
        (
            "add",
            "LoraWorkbenchAdd",
            {"name": "my style", "strength_model": 0.7},
            {"lora_model": "load.lora_model"},
        ),
    ],
    "LoraWorkbenchPrompt": [
        ("prompt", "LoraWorkbenchPrompt", {"text": TAGS}, {}),
        ("text", "PreviewAny", {}, {"source": "prompt.text"}),
    ],
    "LoraWorkbenchWeight": [
        STACK,
        (
            "weight",
            "LoraWorkbenchWeight",
            {"weighting": "IN04-08=0.5, attn2=0", "which": "*style*"},
            {"lora_stack": "stack.lora_stack"},
        ),
    ],
    "LoraWorkbenchMerge": [LOADER, load(), MERGE, run("merge.receipt")],
    "LoraWorkbenchUnmerge": [
        LOADER,
        load("detail.safetensors"),  # that of another picture is merged already
        MERGE,
        ("unmerge", "LoraWorkbenchUnmerge", {}, {"model": "merge.model", "clip": "merge.clip"}),
        run("unmerge.receipt"),
    ],
    "LoraWorkbenchSaveModel": [
        LOADER,
        ("apply", "LoraWorkbenchApply", rows(STYLE), MODEL),
        (
            "save",
            "LoraWorkbenchSaveModel",
            {"filename": "checkpoints/with-style"},
            {"model": "apply.model", "clip": "apply.clip", "vae": "loader.VAE"},
        ),
    ],
    "LoraWorkbenchInspect": [
        load("portrait.safetensors"),
        ("inspect", "LoraWorkbenchInspect", {}, {"lora_model": "load.lora_model"}),
        ("plots", "PreviewImage", {}, {"images": "inspect.plots"}),
    ],
    "LoraWorkbenchHooks": [
        STACK,
        (
            "hooks",
            "LoraWorkbenchHooks",
            {"schedule": "0=0, 0.2-0.8=0..1 in 4"},
            {"lora_stack": "stack.lora_stack"},
        ),
        run("hooks.hooks"),
    ],
    "LoraWorkbenchDataset": [DATASET],
    "LoraWorkbenchTrainSettings": [LOADER, (*SETTINGS[:3], MODEL)],
    "LoraWorkbenchTrain": [
        LOADER,
        (*DATASET[:2], {**DATASET[2], "resolution": 64}, {}),
        SETTINGS,
        TRAIN,
    ],
    "rows": [
        LOADER,
        (
            "apply",
            "LoraWorkbenchApply",
            rows(
                {**STYLE, "name": "wet ink wash.safetensors"},
                DETAIL,
                {"name": "xl glow.safetensors", "on": False},
                {"name": "lighthouse.safetensors"},
            ),
            MODEL,
        ),
    ],
}
# A graph with one of these is run.
ENDS = {"PreviewAny", "PreviewImage", "LoraWorkbenchSaveModel"}
ENDS |= {"LoraWorkbenchDataset", "LoraWorkbenchTrainSettings"}
# Of the last node, for the whole report in its box.
HEIGHTS = {
    "LoraWorkbenchDataset": 790,
    "LoraWorkbenchTrainSettings": 900,
    "LoraWorkbenchTrain": 900,
}
ONLY_LAST = ("rows", "LoraWorkbenchTrain")  # the picture shows the last node alone
BUILD = """async (graph) => {
    const frame = () => new Promise((done) => setTimeout(() => requestAnimationFrame(done)))
    app.graph.clear()
    await frame()
    const made = {}
    for (const [name, kind, values, inputs] of graph) {
        const node = (made[name] = LiteGraph.createNode(kind))
        node.pos = name === "end" ? [3000, 0] : [0, 0]
        app.graph.add(node)
        for (const [key, value] of Object.entries(values))
            node.widgets.find((widget) => widget.name === key).value = value
        for (const [key, from] of Object.entries(inputs)) {
            const [origin, output] = from.split(".")
            const slot = made[origin].outputs.findIndex(({ name }) => name === output)
            made[origin].connect(slot, node, node.inputs.findIndex(({ name }) => name === key))
        }
    }
    await frame()
}"""
# One below the other, all as wide as the widest; gives the picture's box around them.
ARRANGE = """([corner, margin, onlyLast]) => {
    const nodes = app.graph.nodes.filter(({ pos }) => pos[0] < 3000).sort((a, b) => a.id - b.id)
    const width = Math.max(...nodes.map(({ size }) => size[0]), 440)
    const [title, badge, gap] = [LiteGraph.NODE_TITLE_HEIGHT, 14, 24]
    let top = title
    for (const node of nodes) {
        node.setSize([width, Math.max(node.size[1], node.computeSize()[1])])
        node.pos = [0, top]
        top += node.size[1] + title + gap
    }
    const first = (onlyLast ? nodes.at(-1) : nodes[0]).pos[1] - title
    app.canvas.deselectAll?.()
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [corner[0], corner[1] - first]
    app.canvas.setDirty(true, true)
    const x = corner[0] - margin
    const y = corner[1] - margin - badge
    const height = top - title - gap - first + 2 * margin + badge
    return { x, y, width: width + 2 * margin, height }
}"""
IS_CHECKED = """() => [...document.querySelectorAll('.lw-verdict')].every(
        ({ textContent }) => textContent)
    && [...document.querySelectorAll('img')].every((picture) => picture.complete)"""

TALL = """(height) => {
    const node = app.graph.nodes.at(-1)
    node.setSize([node.size[0], Math.max(height, node.size[1])])
}"""
RECHECK = "() => app.extensionManager.command.execute('LoraWorkbench.Recheck')"
# The folder of this run is nobody's.
NO_FOLDER = """(folder) => {
    for (const box of document.querySelectorAll('textarea'))
        box.value = box.value.replaceAll(folder, '/ComfyUI')
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    while (texts.nextNode())
        if (texts.currentNode.data.includes(folder))
            texts.currentNode.data = texts.currentNode.data.replaceAll(folder, '/ComfyUI')
}"""


@pytest.fixture(scope="module")
def files(server):
    """The checkpoint and the LoRAs that the graphs name."""
    source = cache_dir() / SLIM.file_name
    if not source.is_file():
        pytest.fail(f"{source} is missing. Fix: run `make test-comfy` once.", pytrace=False)
    (server.checkpoints / CHECKPOINT).symlink_to(source)
    draw_lamps(server.checkpoints.parents[1] / "input" / "lamps")
    modules = modules_of_checkpoint(source)
    for seed, (name, words) in enumerate(LORAS.items()):
        header = {"ss_network_module": "networks.lora", "ss_tag_frequency": json.dumps(words)}
        path = server.loras / name
        path.unlink(missing_ok=True)
        write_lora(path, modules, header, naming="kohya-te", alpha=4.0, seed=seed)
    attention = [module for module in unet_modules("sd15") if is_attention(module)]
    write_lora(server.loras / "portrait.safetensors", attention, alpha=2.0)
    content = (server.loras / "style.safetensors").read_bytes()
    (server.loras / "wet ink wash.safetensors").write_bytes(content)
    glow = [Module("te2", f"text_model.encoder.layers.{n}.mlp.fc1", (5120, 1280)) for n in range(9)]
    write_lora(server.loras / "xl glow.safetensors", glow)


def draw_lamps(folder):
    """Training pictures in two shapes; one lacks its caption."""
    folder.mkdir(parents=True)
    for number in range(7):
        size = (160, 160) if number % 3 else (200, 140)
        picture = Image.new("RGB", size, (20, 24, 40 + 9 * number))
        draw = ImageDraw.Draw(picture)
        left = 40 + 6 * number
        draw.ellipse((left, 30, left + 60, 90), fill=(250, 190, 60 + 20 * number))
        draw.rectangle((left + 20, 90, left + 40, 130), fill=(120, 80, 40))
        picture.save(folder / f"lamp {number}.png")
        if number:
            (folder / f"lamp {number}.txt").write_text(f"on a table, night {number}")


def modules_of_checkpoint(path):
    """The attention of a checkpoint's UNet and text encoder, under ldm names."""
    with safe_open(path, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    unet = modules_of_shapes("unet", shapes, "model.diffusion_model.")
    text = modules_of_shapes("te1", shapes, "cond_stage_model.transformer.")
    parts = (".attn", ".ff.", ".self_attn.", ".mlp.")
    return [each for each in (*unet, *text) if any(part in each.path for part in parts)]


@pytest.fixture(scope="module")
def page(frontend, files):
    frontend.page.set_viewport_size(WINDOW)
    frontend.page.reload()
    for _ in range(300):
        if frontend.page.evaluate("() => Boolean(window.app?.extensionManager && app.graph)"):
            break
        time.sleep(0.2)
    frontend.page.wait_for_timeout(2000)
    return frontend.page


@pytest.mark.parametrize("name", GRAPHS)
def test_draw(name, server, frontend, page):
    graph = GRAPHS[name]
    page.evaluate(BUILD, [list(entry) for entry in graph])
    if any(kind in ENDS for _, kind, *_ in graph):
        frontend.run()
    page.evaluate(RECHECK)  # the files' answers from before the links came may be late
    page.wait_for_load_state("networkidle")
    for _ in range(200):
        if page.evaluate(IS_CHECKED):
            break
        page.wait_for_timeout(100)
    page.evaluate(NO_FOLDER, str(server.checkpoints.parents[1]))
    page.evaluate(TALL, HEIGHTS.get(name, 0))
    page.wait_for_timeout(1000)  # boxes take their height frame by frame
    arguments = [list(CORNER), MARGIN, name in ONLY_LAST]
    page.evaluate(ARRANGE, arguments)
    page.wait_for_timeout(500)
    box = page.evaluate(ARRANGE, arguments)
    page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")
    FOLDER.mkdir(exist_ok=True)
    small = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(FOLDER / f"{name}.png", optimize=True)
