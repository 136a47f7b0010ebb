"""The rows value in its three forms."""

import json

import pytest

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.nodes.rows import Row, parse_rows, to_json, to_text


def test_json_rows_and_tags_mean_the_same():
    tags = parse_rows("<lora:a.safetensors:1:0.8>\n<lora:folder/b:0.5>").rows
    data = [{"name": "a.safetensors", "model": 1, "clip": 0.8}, {"name": "folder/b", "model": 0.5}]
    assert parse_rows(json.dumps(data)).rows == tags
    assert parse_rows(json.dumps({"version": 1, "rows": data})).rows == tags


def test_only_the_name_is_needed_and_clip_follows_model():
    (row,) = parse_rows('[{"name": "a", "model": 0.3}]').rows
    assert (row.on, row.model, row.strength_clip, row.weighting) == (True, 0.3, 0.3, "")
    (tag,) = parse_rows("<lora:a>").rows
    assert (tag.model, tag.strength_clip) == (1.0, 1.0)


def test_json_round_trips_and_keeps_unknown_fields():
    text = json.dumps([{"name": "a", "clip": 0.2, "weighting": "attn2=0", "colour": [1, 2]}])
    rows = parse_rows(text).rows
    assert rows[0].extra == {"colour": [1, 2]}
    assert parse_rows(to_json(rows)).rows == rows


def test_a_raw_object_of_an_api_prompt_is_read_and_mentioned():
    value = [{"name": "a", "on": False, "model": 0.5}]
    parsed = parse_rows(str(value))
    assert parsed.rows == (Row("a", on=False, model=0.5),)
    assert "json.dumps" in parsed.notes[0]


def test_a_value_that_carries_code_is_not_run():
    with pytest.raises(LoraError, match="neither JSON nor"):
        parse_rows("[__import__('os').getcwd()]")


@pytest.mark.parametrize("empty", ["", "  ", "[]", "[ ]\n", '{"rows": []}'])
def test_empty_means_no_rows(empty):
    assert parse_rows(empty).rows == ()


@pytest.mark.parametrize("text", ["[]\n<lora:a:0.5>", "[]<lora:a:0.5>", "<lora:a:0.5>\n[]\n"])
def test_tags_beside_the_default_of_a_fresh_node_are_read(text):
    assert parse_rows(text).rows == (Row("a", model=0.5),)


@pytest.mark.parametrize(
    "text", ['[{"name": "a"}', '[{"name": "a"}]\n<lora:b>', "[]\nsome words", '{"rows": [}']
)
def test_unreadable_rows_are_told_in_words_and_not_in_a_parsers(text):
    with pytest.raises(LoraError) as caught:
        parse_rows(text)
    message = str(caught.value)
    assert "Expected: a JSON list of rows, or <lora:name:strength> lines" in message
    for word in ("syntax", "unknown", "Expecting", "line 2", "column", "Traceback"):
        assert word not in message


def test_text_leaves_out_rows_that_are_off():
    rows = (Row("a", model=0.5), Row("b", on=False), Row("c", clip=0.25))
    assert to_text(rows) == "<lora:a:0.5:0.5>\n<lora:c:1:0.25>"
    assert [row.name for row in parse_rows(to_text(rows)).rows] == ["a", "c"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("some prompt text", "neither JSON nor"),
        ('[{"model": 1}]', "Row 1 has no name"),
        ('[{"name": "a", "on": "yes"}]', r"Row 1 \(a\): on has a wrong type"),
        ('[{"name": "a", "model": "1"}]', "model has a wrong type"),
        ('[{"name": "a", "model": true}]', "model has a wrong type"),
        ('[{"name": "a", "model": 101}]', "out of range"),
        ('[{"name": "a", "clip": NaN}]', "out of range"),
        ('[{"name": "a", "size": "5"}]', "size has a wrong type"),
        ('[{"name": "a", "weighting": "ATN2=0"}]', "ATN2"),
        ('{"version": 2, "rows": []}', "newer version"),
        ('"a"', "neither JSON nor"),
        ("[1, 2]", "Row 1 has no name"),
        ("<lora:a:strong>", "not a number"),
        ("<lora:a:1000>", "out of range"),
    ],
)
def test_bad_rows_say_what_is_wrong_and_what_to_do(value, message):
    with pytest.raises(LoraError, match=message) as caught:
        parse_rows(value)
    assert "Fix:" in str(caught.value)


def test_a_row_at_strength_0_or_off_is_not_active():
    assert not Row("a", model=0.0).is_active
    assert not Row("a", on=False).is_active
    assert Row("a", model=0.0, clip=0.5).is_active
