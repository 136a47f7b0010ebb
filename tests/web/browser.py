"""ComfyUI's frontend in headless Chromium; for the tests and for benchmarks/web.py."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from .comfyui_server import SECONDS_TO_START

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


class BrowserUnavailableError(Exception):
    """Playwright or Chromium is missing."""


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

    @property
    def has_nodes_2(self) -> bool:
        version = self.page.evaluate(VERSION).split(".")[:2]
        return tuple(map(int, version)) >= NODES_2_SINCE

    def run(self):
        """Queue what is on the canvas as the Run button does; wait for the end."""
        self.page.evaluate(RUN)

    def wait(self, expression, argument=None):
        """Wait until it is true; not wait_for_function, see below."""
        for _ in range(200):
            if self.page.evaluate(expression, argument):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never true: {expression}")

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


@contextmanager
def chromium() -> Iterator:
    """A headless browser.

    Raises:
        BrowserUnavailableError: Playwright or Chromium is missing.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise BrowserUnavailableError(
            "playwright is not installed: see tests/web/requirements.txt"
        ) from None
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise BrowserUnavailableError("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


def opened(browser, url: str) -> Frontend:
    """A new tab at the server's page, of no other address; not yet ready."""
    page = browser.new_page()
    page.set_default_timeout(1000 * SECONDS_TO_START)
    page.route(lambda address: not address.startswith(url), lambda route: route.abort())
    shown = Frontend(page)
    page.goto(url)
    return shown


def wait_until_ready(page):
    """Wait for the page's nodes.

    Raises:
        TimeoutError: they did not come.
    """
    # Not wait_for_function: it was seen to wait for ever on a busy machine.
    for _ in range(600):
        if page.evaluate(READY):
            page.wait_for_timeout(500)
            return
        page.wait_for_timeout(200)
    raise TimeoutError("The frontend did not come up.")
