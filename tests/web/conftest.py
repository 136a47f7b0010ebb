"""The real frontend in a real browser, served by a real ComfyUI."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..comfy.comfy_source import REPOSITORY, ComfyUnavailableError, comfyui_path
from ..lora_files import text_encoder_modules, unet_modules, write_lora

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PACK = "ComfyUI-LoRA-Workbench"
LORA = "style.safetensors"
HEADER = {
    "modelspec.title": "Ink of the tests",
    "ss_network_module": "networks.lora",
    "ss_tag_frequency": '{"5_ink": {"ink wash": 9, "paper": 2}}',
}
SECONDS_TO_START = 240  # 20 on an idle machine
READY = """() => Boolean(window.app && window.LiteGraph && app.extensionManager)
    && Object.keys(LiteGraph.registered_node_types).length > 300"""
# Through text: Playwright turns undefined into null. Frames: nodes settle their types in them.
SHOW = """async (text) => {
    await app.loadGraphData(JSON.parse(text))
    const frame = () => new Promise((done) => setTimeout(() => requestAnimationFrame(done)))
    await frame()
    await frame()
    const { output } = await app.graphToPrompt()
    const types = LiteGraph.registered_node_types
    const titles = {}
    for (const { class_type: kind } of Object.values(output)) titles[kind] = types[kind]?.title
    return JSON.stringify({ output, titles })
}"""
RUN = """async () => {
    const { api } = window.comfyAPI.api
    const finished = new Promise((done, fail) => {
        api.addEventListener("execution_success", done, { once: true })
        api.addEventListener("execution_error", ({ detail }) => fail(detail.exception_message))
        setTimeout(() => fail("no end after 2 minutes: is the graph valid?"), 120_000)
    })
    await app.queuePrompt(0, 1)
    await finished
}"""
VERSION = "() => window.__COMFYUI_FRONTEND_VERSION__"
NODES_2_SINCE = (1, 32)
NODES_2 = "async (on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
EVERY_NODE = """async (names) => {
    app.graph.clear()
    for (const name of names) app.graph.add(LiteGraph.createNode(name))
    return JSON.stringify(app.graph.serialize())
}"""


def missing(what: str):
    """Skip by name; in CI everything has to be there."""
    if os.environ.get("LORA_WORKBENCH_CI") or os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


@dataclass(frozen=True)
class Server:
    """A running ComfyUI with our pack and no model; ``LORA`` is a file in its LoRA folder."""

    url: str
    object_info: dict
    loras: Path
    checkpoints: Path


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Server:
    frontend = importlib.util.find_spec("comfyui_frontend_package")
    if frontend is None:
        missing("comfyui-frontend-package is not installed: see tests/web/requirements.txt")
    try:
        root = comfyui_path()
    except ComfyUnavailableError as error:
        missing(f"ComfyUI is missing: {error}")
    base = tmp_path_factory.mktemp("comfyui")
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"Comfy.TutorialCompleted": true}')  # no dialog of templates
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / PACK).symlink_to(REPOSITORY)
    (base / "models" / "loras").mkdir(parents=True)
    checkpoints = base / "models" / "checkpoints"
    checkpoints.mkdir()
    modules = [*unet_modules("sd15")[:8], *text_encoder_modules("sd15")[:2]]
    write_lora(base / "models" / "loras" / LORA, modules, HEADER, alpha=4.0)
    static = Path(frontend.origin).parent / "static"
    url, port = "http://127.0.0.1:", free_port()
    command = [sys.executable, Path(__file__).parent / "run_comfyui.py", root, static, base, port]
    log = base / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
    try:
        info = wait_for_nodes(process, f"{url}{port}", log)
        yield Server(f"{url}{port}", info, base / "models" / "loras", checkpoints)
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_nodes(process: subprocess.Popen, url: str, log: Path) -> dict:
    """Return the answer of GET /object_info once the server gives one."""
    end = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/object_info", timeout=60) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            time.sleep(0.5)
    pytest.fail(f"ComfyUI did not start.\n{log.read_text()[-3000:]}", pytrace=False)


class Frontend:
    """The canvas in a browser tab; ``errors`` are those of the page's console that name us."""

    def __init__(self, page):
        self.page = page
        self.errors = []
        page.on("console", lambda entry: self._note(entry.type, entry.text, entry.location))
        page.on("pageerror", lambda error: self._note("error", error, error.stack))

    def _note(self, kind, text, where):
        told = f"{text} ({where})"
        if kind == "error" and ("workbench" in told.lower()):
            self.errors.append(told)

    def run(self):
        """Queue what is on the canvas as the Run button does; wait for the end."""
        self.page.evaluate(RUN)

    def choose_renderer(self, nodes_2: bool):
        """The nodes of Vue ("Nodes 2.0"), or the classic canvas."""
        self.page.evaluate(NODES_2, nodes_2)

    def prompt(self, workflow: dict) -> tuple[dict, dict]:
        """Show a workflow; return the prompt that the canvas would send and its classes' titles."""
        shown = json.loads(self.page.evaluate(SHOW, json.dumps(workflow)))
        return shown["output"], shown["titles"]

    def current_prompt(self) -> tuple[dict, dict]:
        """What the canvas would send as it stands; its API prompt and its workflow."""
        text = self.page.evaluate("async () => JSON.stringify(await app.graphToPrompt())")
        sent = json.loads(text)
        return sent["output"], sent["workflow"]

    def canvas_of(self, names: list[str]) -> dict:
        """Return the workflow of a canvas with one fresh node of each class."""
        return json.loads(self.page.evaluate(EVERY_NODE, names))


@pytest.fixture(scope="session")
def frontend(server) -> Frontend:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: see tests/web/requirements.txt")
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None:
        missing("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(1000 * SECONDS_TO_START)
        page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
        shown = Frontend(page)
        page.goto(server.url)
        wait_until_ready(page)
        yield shown
        browser.close()


@pytest.fixture(params=[False, True], ids=["classic", "nodes 2.0"])
def shown(request, frontend):
    """The frontend in one of its renderers; afterwards as it was."""
    version = tuple(map(int, frontend.page.evaluate(VERSION).split(".")[:2]))
    if request.param and version < NODES_2_SINCE:
        pytest.skip("this frontend has no Nodes 2.0")
    frontend.choose_renderer(request.param)
    yield frontend
    frontend.choose_renderer(False)


def wait_until_ready(page):
    # Not wait_for_function: it was seen to wait for ever on a busy machine.
    for _ in range(600):
        if page.evaluate(READY):
            page.wait_for_timeout(500)
            return
        page.wait_for_timeout(200)
    pytest.fail("The frontend did not come up.", pytrace=False)
