"""Every node has a help page in English and Korean, with a picture that shows something."""

import re
from pathlib import Path

import pytest
from PIL import Image

from lora_workbench.nodes import NODES

DOCS = Path(__file__).parents[2] / "web" / "docs"
PICTURE = re.compile(r"!\[([^\]]+)\]\(([^)]+)\)")
MOST_BYTES = 150_000
IDS = [node.__name__ for node in NODES]


@pytest.mark.parametrize("node_id", IDS)
@pytest.mark.parametrize("page", ["{}.md", "{}/ko.md"])
def test_the_page_has_a_picture_of_its_node(node_id, page):
    """The frontend reads a page's links from docs/, also those of docs/<id>/ko.md."""
    pictures = PICTURE.findall((DOCS / page.format(node_id)).read_text(encoding="utf-8"))
    assert f"img/{node_id}.png" in [path for _, path in pictures]
    for text, path in pictures:
        assert len(text) > 15, "what somebody who cannot see it should know"
        assert (DOCS / path).is_file(), path


def test_the_pictures_are_small_and_not_blank():
    paths = sorted((DOCS / "img").iterdir())
    assert {path.stem for path in paths} == {*IDS, "rows"}
    for path in paths:
        assert path.stat().st_size < MOST_BYTES, path.name
        with Image.open(path) as picture:
            colours = picture.convert("L").getcolors(maxcolors=256)
            assert picture.width >= 400
        assert len(colours) > 16, path.name
        assert max(count for count, _ in colours) < 0.95 * sum(count for count, _ in colours)


@pytest.mark.parametrize("node_id", IDS)
def test_the_korean_page_names_the_same_inputs_and_outputs(node_id):
    """In the same order, in the tables of both."""
    english, korean = (
        re.findall(r"^\| (`[^|]+) \|", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
        for page in (f"{node_id}.md", f"{node_id}/ko.md")
    )
    assert korean == english
