"""A long-running node in ``lora-workbench run``: its progress, and Ctrl-C that keeps."""

import json
import signal

import pytest
import torch

from lora_workbench.headless import run_embedded
from lora_workbench.headless.cli import main
from lora_workbench.headless.keep_on_interrupt import first_interrupt_keeps
from lora_workbench.nodes.base import LIVE_INPUT, Node

STEPS = 8


class Worker(Node):
    """Counts to ``STEPS``; Ctrl-C comes at the steps in ``at``."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    DISPLAY_NAME = "Worker"
    at: tuple[int, ...] = ()
    reached = 0

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}, "optional": {}, "hidden": LIVE_INPUT}

    def execute(self, lora_workbench_live):
        with self.host.live(lora_workbench_live) as live:
            for step in range(1, STEPS + 1):
                Worker.reached = step
                live.progress(step, STEPS, "text")
                live.point("loss", step, 1.0)
                live.picture(torch.zeros(4, 4, 3))
                if step in self.at:
                    signal.raise_signal(signal.SIGINT)
                if live.stop_requested() == "keep" and STEPS not in self.at:
                    break
        return {"ui": {"text": [f"{lora_workbench_live}: {step} of {STEPS}"]}}


@pytest.fixture
def work(tmp_path, capsys, monkeypatch):
    """Runs a Worker; gives the exit code, the JSON document, and standard error."""

    def work(*at):
        monkeypatch.setenv("LORA_WORKBENCH_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(Worker, "at", at)
        monkeypatch.setattr(
            run_embedded, "node_mappings", lambda host: ({"Worker": Worker.bound_to(host)}, {})
        )
        graph = tmp_path / "graph.json"
        graph.write_text(json.dumps({"7": {"class_type": "Worker", "inputs": {}}}))
        folders = ["--models", str(tmp_path), "--output", str(tmp_path / "out")]
        code = main(["run", str(graph), *folders, "--json"])
        shown = capsys.readouterr()
        return code, json.loads(shown.out), shown.err

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield work
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_a_node_with_a_live_panel_runs_without_a_canvas(work):
    code, document, _ = work()
    assert (code, document["status"]) == (0, "success")
    assert [output["text"] for output in document["outputs"]] == [f"7: {STEPS} of {STEPS}"]


def test_the_first_control_c_keeps_what_there_is(work):
    code, document, told = work(3)
    assert (code, document["status"]) == (0, "success")
    assert [output["text"] for output in document["outputs"]] == [f"7: 3 of {STEPS}"]
    assert "Ctrl-C again stops at once" in told


def test_the_second_control_c_interrupts(work):
    """A node that does not look at the wish: ``STEPS`` among the steps says so to the Worker."""
    code, document, _ = work(3, 5, STEPS)
    assert (code, document["status"]) == (1, "interrupted")
    assert Worker.reached == 5


def test_steps_are_reported_to_the_run(work, monkeypatch):
    seen = []
    watch = run_embedded.following

    def following(prompt, show):
        inner = watch(prompt, show)
        return lambda event, data: (seen.append((event, dict(data))), inner(event, data))

    monkeypatch.setattr(run_embedded, "following", following)
    work()
    steps = [(data["value"], data["max"]) for event, data in seen if event == "progress"]
    assert steps == [(step, STEPS) for step in range(1, STEPS + 1)]


def test_control_c_is_as_ever_when_nobody_can_keep():
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), first_interrupt_keeps(lambda: False):
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, found)


def test_where_control_c_is_ignored_it_stays_so():
    found = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with first_interrupt_keeps(lambda: False):
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, found)
