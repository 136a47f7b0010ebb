"""Progress where nobody sees a bar: lines, neither many nor none."""

import pytest

from lora_workbench.headless import progress
from lora_workbench.headless.progress import Lines, graph_bar


@pytest.fixture
def clock(monkeypatch):
    """Seconds as a list of one, to be set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines_of_work(clock, seconds):
    """When lines are written during even work, in seconds."""
    clock[0] = 0.0
    lines = Lines()
    found = []
    for clock[0] in range(seconds + 1):
        if lines.is_due(clock[0] / seconds):
            found.append(clock[0])
    return found


def test_a_line_is_due_at_each_tenth_and_each_half_minute_and_none_in_short_work(clock):
    assert lines_of_work(clock, 100) == list(range(10, 101, 10))
    assert lines_of_work(clock, 600)[:4] == [30, 60, 90, 120]
    assert lines_of_work(clock, 4) == []
    assert len(lines_of_work(clock, 20)) == 4


def test_without_a_terminal_a_graph_is_followed_by_lines(clock, capsys):
    with graph_bar(4) as show:
        show(0.5, "KSampler")
        clock[0] = 6.0
        show(2.0, "VAE Decode")
        show(2.1, "VAE Decode")
    assert capsys.readouterr().err == "50%: VAE Decode\n"
