"""The schedule text, against schedules written out by hand."""

import pytest

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.nodes.hooks import LoraWorkbenchHooks
from lora_workbench.nodes.schedule import parse_schedule


@pytest.mark.parametrize(
    ("text", "keyframes"),
    [
        ("", []),
        (" \n ", []),
        ("0=1", [(0, 1)]),
        ("0=0, 0.3=1", [(0, 0), (0.3, 1)]),
        ("30%=.5\n 60 % = -2,", [(0, 1), (0.3, 0.5), (0.6, -2)]),
        ("0.2-0.8=0..1 in 4", [(0, 1), (0.2, 0), (0.4, 1 / 3), (0.6, 2 / 3), (0.8, 1)]),
        ("0%-100%=1..-.5 in 2", [(0, 1), (1, -0.5)]),
        ("0-0.5=2..0 in 3, 0.5=1", [(0, 2), (0.25, 1), (0.5, 1)]),
    ],
)
def test_a_schedule_is_starts_and_factors(text, keyframes):
    """Before the first start the factor is 1; at an equal start the later entry decides."""
    got = parse_schedule(text)
    assert [pytest.approx(keyframe) for keyframe in keyframes] == list(got)


def test_a_ramp_has_ten_steps_unless_said_and_meets_its_ends_exactly():
    ramp = parse_schedule("0.1-0.9=0.3..0.7")[1:]
    assert len(ramp) == 10
    assert (ramp[0], ramp[-1]) == ((0.1, 0.3), (0.9, 0.7))
    assert parse_schedule("0.1-0.9=0.3..0.7, 0.9=1")[-1] == (0.9, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5", "cannot be read"),
        ("half=1", "cannot be read"),
        ("-0.1=1", "cannot be read"),
        ("0.5=1e2", "cannot be read"),
        ("30=1", "out of range"),
        ("101%=0", "out of range"),
        ("0=1000", "out of range"),
        ("0.5=0, 0.4=1", "do not rise"),
        ("0.2-0.8=0..1, 0.5=1", "do not rise"),
        ("0.8-0.2=0..1", "no length or no steps"),
        ("0.2-0.8=0..1 in 1", "no length or no steps"),
        ("0.2-0.8=0..1 in 101", "no length or no steps"),
        ("0.3=1", "changes nothing"),
    ],
)
def test_an_unreadable_schedule_says_what_to_write(text, message):
    with pytest.raises(LoraError, match=message) as caught:
        parse_schedule(text)
    assert "Fix:" in str(caught.value)
    assert LoraWorkbenchHooks.VALIDATE_INPUTS(schedule=text) == str(caught.value)
    assert LoraWorkbenchHooks.VALIDATE_INPUTS() is True


def test_the_node_hands_the_stack_and_the_keyframes_to_its_host(host):
    node = LoraWorkbenchHooks.bound_to(host)()
    host.write("a.safetensors")
    shown = node.execute([("a", 0.5, 0.25)], "30%=0")
    stack, schedule = shown["result"][0]
    assert [(item.strength_model, item.strength_clip) for item in stack] == [(0.5, 0.25)]
    assert schedule == ((0.0, 1.0), (0.3, 0.0))
    assert "from 30.0%: 0" in shown["ui"]["text"][0]
    assert "without a weighting" in shown["ui"]["text"][0]
