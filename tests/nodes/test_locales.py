"""The texts of the canvas: English says what the nodes say, Korean says all of it."""

import json
import re

import pytest

from lora_workbench.nodes import NODES

from ..node_texts import LOCALES, node_texts

FILES = ("main", "nodeDefs", "commands", "settings")
PLACEHOLDER = re.compile(r"\{\w+\}")
HANGUL = re.compile(r"[가-힣]")
SAME_IN_KOREAN = {"LoRA Workbench", "clip", "vae", "sha256"}


def read(language, name):
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def leaves(tree, path=()):
    """Each text under the path of its keys, in the file's order."""
    if isinstance(tree, str):
        yield path, tree
    else:
        for key, value in tree.items():
            yield from leaves(value, (*path, key))


def test_english_is_what_the_nodes_say():
    """`make locales` writes it."""
    assert read("en", "nodeDefs") == node_texts()


@pytest.mark.parametrize("name", FILES)
def test_korean_has_every_key_and_placeholder_of_english(name):
    english, korean = (dict(leaves(read(language, name))) for language in ("en", "ko"))
    assert list(korean) == list(english)
    for path, text in korean.items():
        places = [sorted(PLACEHOLDER.findall(each)) for each in (text, english[path])]
        assert places[0] == places[1], path
        assert HANGUL.search(text) or text in SAME_IN_KOREAN, path


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("name", FILES)
def test_the_frontend_shows_each_text_as_it_is_written(language, name):
    """vue-i18n takes these signs for its own, and 1.27 throws at a brace without a name."""
    for path, text in leaves(read(language, name)):
        if path[0] != "loraWorkbench":  # read by our own scripts
            assert not re.search(r"[{}@|]", text), path


def test_every_node_is_found_by_other_names():
    for node in NODES:
        assert node.SEARCH_ALIASES
        for alias in node.SEARCH_ALIASES:
            assert alias == alias.lower() != node.DISPLAY_NAME.lower()
