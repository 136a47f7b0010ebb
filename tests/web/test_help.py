"""The frontend shows a node's help page with its picture."""

import pytest

from .conftest import wait_until_ready
from .test_locales import CHOOSE
from .test_rows import FRESH

NODE = "LoraWorkbenchUnmerge"
# Below the tabs, so that there is room for the toolbox above it.
SELECT = """() => {
    app.canvas.ds.offset = [0, 250]
    app.canvas.selectNode(app.graph.nodes[0])
}"""
WIDTH = """(path) => [...document.querySelectorAll('img')]
    .find(({ src }) => src.endsWith(path))?.naturalWidth ?? 0"""

CLICK = "() => document.querySelector('[data-testid=info-button]')?.click()"
CLOSE = """() => {
    const { setting } = app.extensionManager
    const panel = 'Comfy.RightSidePanel.IsOpen' // not in 1.27
    if (setting.get(panel)) return setting.set(panel, false)
}"""


@pytest.fixture
def page(server, frontend):
    """A tab of its own: help opens a panel, which is remembered and takes room."""
    page = frontend.page.context.browser.new_page()
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    page.set_default_timeout(20_000)
    page.goto(server.url)
    wait_until_ready(page)
    yield page
    page.evaluate(CHOOSE, "en")
    page.evaluate(CLOSE)
    page.close()


@pytest.mark.parametrize(
    ("language", "heading"), [("en", "Unmerge From Model"), ("ko", "모델에서 병합 해제")]
)
def test_the_help_of_a_node_shows_its_picture(page, language, heading):
    page.evaluate(CHOOSE, language)
    page.reload()
    wait_until_ready(page)
    open_help(page, page.locator("h1").filter(has_text=heading).first)
    for _ in range(100):
        if page.evaluate(WIDTH, f"/docs/img/{NODE}.png") > 400:
            return
        page.wait_for_timeout(100)
    pytest.fail("The picture was not loaded.")


def open_help(page, heading):
    """Again when a workflow that the page restores late has taken the node away."""
    for _ in range(10):
        page.evaluate(FRESH, NODE)
        page.evaluate(SELECT)
        page.wait_for_timeout(1000)
        page.evaluate(CLICK)
        page.wait_for_timeout(2000)
        if heading.is_visible():
            return
    pytest.fail("The help was not shown.")
