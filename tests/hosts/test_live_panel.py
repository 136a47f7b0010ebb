"""The state of live panels: bounded, in order, and whole for a page that comes late."""

from threading import Thread

import pytest

from lora_workbench.hosts.live_panel import (
    MOST_PANELS,
    MOST_PICTURES,
    MOST_POINTS,
    MOST_SERIES,
    Panel,
    PanelKey,
    Panels,
    thinned,
)

KEY = PanelKey("w", "p", "12:5")


def test_events_carry_what_changed_since_the_last_one():
    panel = Panel(KEY)
    first = panel.take()
    assert first == {
        "workflow": "w",
        "prompt": "p",
        "node": "12:5",
        "number": 1,
        "state": "running",
    }
    assert panel.take() is None
    panel.point("loss", 1, 0.5)
    panel.point("loss", 2, 0.25)
    panel.progress(2, 10, "a")
    panel.progress(3, 10, "b")
    event = panel.take()
    assert event["number"] == 2
    assert event["points"] == {"loss": [(1.0, 0.5), (2.0, 0.25)]}
    assert [event["progress"][name] for name in ("step", "total", "text", "first")] == [
        *(3, 10, "b", 2),
    ]
    assert "pictures" not in event


def test_a_snapshot_and_the_events_after_it_hold_each_point_once():
    """Whoever asks between two events gets the points of the second from the second."""
    panel = Panel(KEY)
    panel.point("loss", 1, 1)
    panel.take()
    panel.point("loss", 2, 2)
    whole, event = panel.snapshot(), panel.take()
    assert event["number"] == whole["number"] + 1
    assert [*whole["points"]["loss"], *event["points"]["loss"]] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("send_each", [True, False])
def test_a_long_curve_is_thinned_and_its_peaks_stay(send_each):
    panel, count = Panel(KEY), 4 * MOST_POINTS
    for x in range(count):
        panel.point("loss", x, 100.0 if x == 1234 else -7.0 if x == 5000 else x % 3)
        if send_each:
            panel.take()
    event = panel.take()
    points = panel.snapshot()["points"]["loss"]
    assert len(points) <= MOST_POINTS
    assert event is None or len(event["points"]["loss"]) <= MOST_POINTS
    assert (1234.0, 100.0) in points
    assert (5000.0, -7.0) in points
    assert points[-1][0] > count - 8
    assert points == sorted(points)


def test_thinning_of_few_and_of_equal_points():
    assert thinned([]) == []
    assert thinned([(1, 1)]) == [(1, 1)]
    assert thinned([(x, 0.0) for x in range(8)]) == [(0, 0.0), (4, 0.0)]


def test_values_that_json_cannot_hold_are_left_out():
    panel = Panel(KEY)
    for value in (float("nan"), float("inf"), -float("inf")):
        panel.point("loss", 1, value)
    panel.take()
    assert panel.snapshot()["points"] == {}


def test_series_and_pictures_are_bounded():
    panel = Panel(KEY)
    for number in range(MOST_SERIES):
        panel.point(str(number), 0, 0)
        panel.take()
    panel.point("0", 1, 1)
    with pytest.raises(ValueError, match="at most"):
        panel.point("one more", 0, 0)
    last = 3 * MOST_PICTURES
    for number in range(1, last + 1):
        panel.picture(b"data", "image/png", f"step {number}")
    shown = [picture["caption"] for picture in panel.snapshot()["pictures"]]
    assert shown == [f"step {number}" for number in range(last - MOST_PICTURES + 1, last + 1)]
    assert panel.picture_of(str(last - 2 * MOST_PICTURES)) is None
    assert panel.picture_of(str(last - 2 * MOST_PICTURES + 1)).data == b"data"


def test_the_wish_to_keep_ends_with_the_run():
    panel = Panel(KEY)
    assert not panel.is_asked_to_keep()
    assert panel.ask_to_keep()
    assert panel.is_asked_to_keep()
    panel.end("kept")
    assert not panel.is_asked_to_keep()
    assert not panel.ask_to_keep()
    assert (panel.snapshot()["state"], panel.snapshot()["keep"]) == ("kept", False)


def test_panels_are_bounded_and_a_node_has_one():
    panels = Panels()
    for number in range(MOST_PANELS + 3):
        panels.open(PanelKey("w", "p", str(number)))
    assert len(panels.of_workflow("w")) == MOST_PANELS
    assert panels.get("p", "2") is None
    again = panels.open(PanelKey("w", "q", "9"))
    assert panels.get("p", "9") is None
    assert panels.get("q", "9") is again
    assert len(panels.of_workflow("w")) == MOST_PANELS


def test_a_workflow_sees_its_own_panels():
    panels = Panels()
    for workflow in ("a", "b", ""):
        panels.open(PanelKey(workflow, "p", f"of {workflow}"))
    assert [panel.key.node for panel in panels.of_workflow("a")] == ["of a"]
    assert len(panels.of_workflow(None)) == 3


def test_no_point_is_lost_between_threads():
    panel, seen = Panel(KEY), []
    working = Thread(target=lambda: [panel.point("a", x, x) for x in range(1500)])
    working.start()
    while working.is_alive():
        seen += (panel.take() or {}).get("points", {}).get("a", [])
    seen += (panel.take() or {}).get("points", {}).get("a", [])
    assert [x for x, _ in seen] == list(range(1500))
