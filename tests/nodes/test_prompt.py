"""Tags in a prompt: the text that is left, and the LoRAs that it names."""

import pytest

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.nodes.prompt import LoraWorkbenchPrompt, read_prompt


@pytest.fixture
def node(host):
    return LoraWorkbenchPrompt.bound_to(host)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("", ""),
        ("  no tag ,, at all , ", "  no tag ,, at all , "),
        ("<lora:a:1>", ""),
        (" <lora:a:1> , <lora:b> ", ""),
        ("<lora:a:1> a cat", "a cat"),
        ("<lora:a:1>, a cat", "a cat"),
        ("a cat <lora:a:1>", "a cat"),
        ("a cat, <lora:a:1>", "a cat"),
        ("a cat, <lora:a:1>, dusk", "a cat, dusk"),
        ("a cat, <lora:a:1> dusk", "a cat, dusk"),
        ("a cat <lora:a:1>, dusk", "a cat, dusk"),
        ("a cat,<lora:a:1><lora:b:1> ,dusk", "a cat, dusk"),
        ("a cat <lora:a:1> at dusk", "a cat at dusk"),
        ("a cat<lora:a:1>at dusk", "a cat at dusk"),
        ("a cat  <lora:a:1>  at  dusk", "a cat at  dusk"),
        ("(a cat <lora:a:1>:1.2), dusk", "(a cat:1.2), dusk"),
        ("(<lora:a:1> a cat:1.2)", "(a cat:1.2)"),
        ("[cat, <lora:a:1>|<lora:b:1>, dog]", "[cat|dog]"),
        ("a cat <lora:a:1>.", "a cat."),
        ("a cat\n<lora:a:1>\nat dusk", "a cat\nat dusk"),
        ("a cat,\n\n<lora:a:1>\n<lora:b:1>\n\nat dusk", "a cat,\n\nat dusk"),
        ("a cat\n<lora:a:1>", "a cat"),
        ("a,, cat , <lora:a:1>, at , dusk, ", "a,, cat, at , dusk, "),
        (r"{a|b} \(c\) embedding:x <lora:a:1>", r"{a|b} \(c\) embedding:x"),
        ("a <b> c <lora:a:1>", "a <b> c"),
    ],
)
def test_only_where_a_tag_stood_separators_are_joined(text, cleaned):
    assert read_prompt(text)[0] == cleaned


def test_strengths_default_to_1_and_to_that_of_the_model():
    rows = read_prompt("<lora:a> <lora:b:0.5> <lora:c:0.5:-0.25> <lora:d::0.3>")[1]
    assert [(row.name, row.model, row.strength_clip) for row in rows] == [
        ("a", 1.0, 1.0),
        ("b", 0.5, 0.5),
        ("c", 0.5, -0.25),
        ("d", 1.0, 0.3),
    ]


def test_tags_become_entries_in_their_order_each_time_they_stand(host, node):
    host.write("a.safetensors")
    named = host.write("my style/b c.v2.safetensors", 2.0)
    text, stack = node().execute("x <lora:b c.v2:0.5>, <lora:a:0.3:0> <lora:a:0.4>")
    assert text == "x"
    assert list(map(tuple, stack)) == [
        (named, 0.5, 0.5),
        ("a.safetensors", 0.3, 0.0),
        ("a.safetensors", 0.4, 0.4),
    ]


def test_a_tag_at_strength_0_loads_nothing(host, node):
    assert node().execute("a cat <lora:gone:0>") == ("a cat", [])
    assert host.loaded == []


def test_an_unknown_file_is_an_error_with_near_matches(host, node):
    host.write("watercolour.safetensors")
    with pytest.raises(LoraError, match=r"watercolor is missing(.|\n)*watercolour\.safetensors"):
        node().execute("a cat <lora:watercolor:1>")


@pytest.mark.parametrize(
    "tag",
    [
        "<lora:a:strong>",
        "<lora:a:1000>",
        "<lora:a:1:lbw=OUTALL>",
        "<lora:a:te=0.5>",
        "<lora:a:1:1:1>",
        "<lora:>",
        "<lora: :1>",
        "<lora:a:1",
        "<LoRA:a:1>",
        "< lora:a:1>",
    ],
)
def test_an_unreadable_tag_is_refused_when_the_graph_is_queued(tag):
    """Never left in the text in silence: CLIP would read it as words."""
    text = f"a cat, <lora:fine:1> {tag} dusk"
    problem = LoraWorkbenchPrompt.VALIDATE_INPUTS(text=text)
    assert "Fix:" in problem
    with pytest.raises(LoraError):
        read_prompt(text)


def test_good_and_linked_text_is_accepted():
    assert LoraWorkbenchPrompt.VALIDATE_INPUTS(text="a cat <lora:a:1>") is True
    assert LoraWorkbenchPrompt.VALIDATE_INPUTS() is True


def test_a_changed_file_is_noticed(host, node):
    host.write("a.safetensors")
    text = "a cat <lora:a:1>"
    before = node.IS_CHANGED(text=text)
    assert node.IS_CHANGED(text=text) == before
    host.write("a.safetensors", 2.0)
    assert node.IS_CHANGED(text=text) != before
    assert node.IS_CHANGED() == ""


def test_a_long_prompt_of_separators_is_read_at_once():
    """No backtracking: a million separators take no time."""
    text = ", " * 500_000
    assert read_prompt(text + "<lora:a:1>" + text)[0] == ""
