"""The frontend shows a node's help page with its picture."""

import pytest

from .test_locales import CHOOSE
from .test_rows import FRESH

SELECT = "() => app.canvas.selectNode(app.graph.nodes[0])"
WIDTH = """(path) => [...document.querySelectorAll('img')]
    .find(({ src }) => src.endsWith(path))?.naturalWidth ?? 0"""


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_help_of_a_node_shows_its_picture(frontend, language):
    page, node_id = frontend.page, "LoraWorkbenchUnmerge"
    page.evaluate(CHOOSE, language)
    page.evaluate(FRESH, node_id)
    page.evaluate(SELECT)
    try:
        page.get_by_test_id("info-button").first.click()
        for _ in range(100):
            if width := page.evaluate(WIDTH, f"/docs/img/{node_id}.png"):
                break
            page.wait_for_timeout(100)
        heading = {"en": "Unmerge From Model", "ko": "모델에서 병합 해제"}[language]
        page.locator("h1").filter(has_text=heading).first.wait_for()
        assert width > 400
    finally:
        page.evaluate(CHOOSE, "en")
    assert frontend.errors == []
