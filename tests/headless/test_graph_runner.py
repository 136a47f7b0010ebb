"""Running graphs without ComfyUI; tests/comfy/test_graph_runner.py compares with ComfyUI itself."""

import gc
import json
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch

from lora_workbench.headless.graph import Progress, RunInterrupted, Runner, validate

from ..graph_examples import BAD, GOOD, TOYS, node, number, show, shown, toy


def run(runner, prompt, **options):
    checked = validate(prompt, TOYS)
    assert checked.ok, checked
    return runner.run(checked.prompt, outputs=checked.outputs, **options)


@pytest.fixture
def runner():
    return Runner(TOYS)


@pytest.fixture
def work(monkeypatch):
    """Replaces the function of a toy."""
    return lambda name, function: monkeypatch.setattr(TOYS[name], "work", function)


# --- validation -----------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", BAD.values(), ids=BAD.keys())
def test_a_bad_graph_has_errors_that_are_json(prompt):
    answer = validate(prompt, TOYS)
    assert answer.error or answer.node_errors
    json.dumps([answer.error, answer.node_errors])


@pytest.mark.parametrize("prompt", [[], None, "graph", {"1": 5}, {"1": []}])
def test_what_is_no_graph_is_refused(prompt):
    """ComfyUI answers these with status 500."""
    assert validate(prompt, TOYS).error["type"] == "invalid_prompt"


@pytest.mark.parametrize("class_type", [["ToyNumber"], {}, 5])
def test_a_class_of_another_type_is_an_unknown_one(class_type):
    answer = validate({"1": {"class_type": class_type, "inputs": {}, "_meta": []}}, TOYS)
    assert answer.error["type"] == "missing_node_type"


def test_validation_changes_no_prompt():
    prompt = shown(x=number("7"))
    assert validate(prompt, TOYS).prompt["x"]["inputs"] == {"value": 7}
    assert prompt == shown(x=number("7"))


def chain(length):
    """Of this many numbers."""
    nodes = {str(index): number([str(index - 1), 0]) for index in range(1, length)}
    return shown(**{"0": number(), **nodes}, x=number([str(length - 1), 0]))


def test_a_graph_may_be_deeper_than_python_s_stack(runner):
    assert len(run(runner, chain(1500)).executed) == 1502


def test_a_long_cycle_is_found(runner):
    prompt = chain(1500)
    prompt["0"] = number(["1499", 0])
    errors = validate(prompt, TOYS).node_errors
    assert len(errors) == 1500
    assert {error["type"] for entry in errors.values() for error in entry["errors"]} == {
        "dependency_cycle"
    }


def test_a_wrapped_list_is_never_a_link(runner):
    """ComfyUI takes this one for a link once it is unwrapped, and its executor dies of it."""
    prompt = shown(x=node("ToyAny", value={"__value__": ["gone", 0]}))
    checked = validate(prompt, TOYS)
    again = validate(checked.prompt, TOYS)
    result = runner.run(again.prompt, outputs=again.outputs)
    assert "['gone', 0]" in result.outputs["show"]["text"][0]


# --- running --------------------------------------------------------------------------------


def test_a_run_gives_what_outputs_show_and_carry(runner):
    result = run(
        runner, {"1": number(4), "2": node("ToyShowAndPass", value=["1", 0]), "3": show(["2", 0])}
    )
    assert result.status == "success"
    assert result.outputs == {"2": {"text": [4], "more": [1]}, "3": {"text": ["5"]}}
    assert result.results == {"2": [[5]], "3": []}
    assert result.executed == ("1", "2", "3")


def test_only_the_chosen_outputs_run(runner):
    checked = validate(GOOD["outputs first"], TOYS, ["first"])
    assert runner.run(checked.prompt, outputs=checked.outputs).executed == ("a", "first")


def test_a_run_changes_no_prompt(runner):
    checked = validate(GOOD["changed"], TOYS)
    before = json.dumps(checked.prompt)
    runner.run(checked.prompt, outputs=checked.outputs)
    assert json.dumps(checked.prompt) == before


def test_equal_graphs_run_nothing_and_show_the_same(runner):
    first, second = (run(runner, GOOD["diamond"]) for _ in range(2))
    assert (second.executed, second.outputs) == ((), first.outputs)
    assert set(second.cached) == set(GOOD["diamond"])


class Large:
    """Something that a test can see being freed."""


def test_results_that_a_prompt_does_not_use_are_dropped(runner, work):
    made = weakref.WeakSet()

    def make(self, value):
        large = Large()
        made.add(large)
        return (large,)

    work("ToyNumber", make)
    for value in (1, 2, 3):
        run(runner, shown(x=number(value)))
    gc.collect()
    assert len(made) == 1


def test_cleared_results_are_made_again(runner):
    run(runner, shown(x=node("ToyCounter", value=1)))
    runner.clear()
    assert run(runner, shown(x=node("ToyCounter", value=1))).outputs["show"]["text"] == ["1"]


def test_a_saved_fingerprint_does_not_hide_a_change(runner, monkeypatch):
    """Pictures carry ``is_changed``; ComfyUI would believe it, whatever the file is now."""
    prompt = shown(x={**node("ToyChanged", value=1), "is_changed": ["old"]})
    run(runner, prompt)
    assert run(runner, prompt).executed == ()
    monkeypatch.setattr(TOYS["ToyChanged"], "IS_CHANGED", lambda value: "new")
    assert run(runner, prompt).executed == ("x", "show")


def test_one_constant_nan_is_a_change_each_time(runner, monkeypatch):
    """ComfyUI compares it by identity, and would not run the node."""
    constant = float("nan")
    monkeypatch.setattr(TOYS["ToyAlways"], "IS_CHANGED", lambda value: constant)
    prompt = shown(x=node("ToyAlways", value=1))
    run(runner, prompt)
    assert run(runner, prompt).executed == ("x", "show")


def test_nodes_run_without_gradients(runner, work):
    work("ToyNumber", lambda self, value: (torch.is_inference_mode_enabled(),))
    assert run(runner, shown(x=number())).outputs["show"]["text"] == ["True"]


async def wait_for(self, value, seconds=0.0):
    return (torch.is_inference_mode_enabled(),)


def test_coroutines_run_without_gradients_too(runner, work):
    work("ToyAsync", wait_for)
    result = run(runner, shown(x=node("ToyAsync", value=1)))
    assert result.outputs["show"]["text"] == ["True"]


def test_coroutines_wait_side_by_side(runner):
    nodes = {str(index): node("ToyAsync", value=index, seconds=0.2) for index in range(5)}
    shows = {f"show {index}": show([index, 0]) for index in nodes}
    started = time.perf_counter()
    assert run(runner, {**nodes, **shows}).status == "success"
    assert time.perf_counter() - started < 0.9  # one after another: 1 s


# --- failures -------------------------------------------------------------------------------


def test_a_failure_names_the_node_its_inputs_and_its_cause(runner):
    prompt = shown(y=number(2), x=node("ToyFails", value=["y", 0], text="z"))
    result = run(runner, prompt)
    error = result.error
    assert (result.status, result.executed) == ("error", ("y",))
    assert (error["node_id"], error["node_type"]) == ("x", "ToyFails")
    assert (error["exception_type"], error["exception_message"]) == (
        "ValueError",
        "2 is not good\n",
    )
    assert error["current_inputs"] == {"value": [2], "text": ["z"], "id": ["x"]}
    assert "in work" in error["traceback"][-1]


def test_after_a_failure_only_the_rest_runs(runner):
    prompt = shown(y=number(2), x=node("ToyFails", value=["y", 0], text="z"))
    run(runner, prompt)
    assert run(runner, prompt).executed == ()
    prompt["x"]["inputs"]["value"] = 0
    assert run(runner, prompt).executed == ("x", "show")


class ExecutionBlocker:
    """As nodes import it from ComfyUI."""


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        ({"expand": {}, "result": (1,)}, "node expansion"),
        ((ExecutionBlocker(),), "ExecutionBlocker"),
        (ExecutionBlocker(), "ExecutionBlocker"),
        ({"result": (ExecutionBlocker(),)}, "ExecutionBlocker"),
    ],
)
def test_what_only_comfyui_has_is_refused_by_name(returned, what, runner, work):
    work("ToyNumber", lambda self, value: returned)
    message = run(runner, shown(x=number())).error["exception_message"]
    assert message.startswith(f"Node x (ToyNumber) needs {what}")
    assert "--comfyui" in message


def test_the_dynamic_prompt_is_refused_by_name(runner, monkeypatch):
    types = toy({"value": "INT"}, hidden={"dynprompt": "DYNPROMPT"})
    monkeypatch.setattr(TOYS["ToyNumber"], "INPUT_TYPES", types)
    error = run(runner, shown(x=number())).error
    assert (error["node_id"], "--comfyui" in error["exception_message"]) == ("x", True)


def test_an_undeclared_link_to_a_missing_node_is_an_error(runner):
    result = run(runner, shown(x=node("ToyAny", more=["gone", 0])))
    assert (result.status, "gone" in result.error["exception_message"]) == ("error", True)


def test_a_node_that_gives_too_few_outputs_is_named(runner, work):
    work("ToyPair", lambda self, value: (value,))
    prompt = shown(y=node("ToyPair", value=1), x=node("ToyText", text=["y", 1]))
    assert "Node y (ToyPair)" in run(runner, prompt).error["exception_message"]


# --- interrupts -----------------------------------------------------------------------------


def test_an_interrupt_stops_at_a_report_of_progress(work):
    progress, stop, seen = Progress(), threading.Event(), []
    runner = Runner(TOYS, progress)

    def work_in_steps(self, value):
        for step in range(5):
            progress.report(step, 5)
            if step == 2:
                stop.set()
        return (value,)

    work("ToyOnce", work_in_steps)
    prompt = shown(y=number(1), x=node("ToyOnce", value=["y", 0]))
    result = run(runner, prompt, interrupt=stop, on_event=lambda *event: seen.append(event))
    assert (result.status, result.executed, result.error["node_id"]) == ("interrupted", ("y",), "x")
    assert [data["value"] for name, data in seen if name == "progress"] == [0, 1, 2]
    assert [name for name, _ in seen][-2:] == ["execution_interrupted", "executing"]
    work("ToyOnce", lambda self, value: (value,))
    assert run(runner, prompt, interrupt=stop).executed == ("x", "show")


def test_an_interrupt_from_before_the_run_is_forgotten(runner):
    stop = threading.Event()
    stop.set()
    assert run(runner, shown(x=number()), interrupt=stop).status == "success"


def test_an_interrupt_stops_the_wait_for_coroutines(runner):
    stop = threading.Event()
    timer = threading.Timer(0.05, stop.set)
    timer.start()
    started = time.perf_counter()
    result = run(runner, shown(x=node("ToyAsync", value=1, seconds=60)), interrupt=stop)
    timer.join()
    assert (result.status, result.error["node_id"]) == ("interrupted", "x")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RunInterrupted])
def test_a_keyboard_interrupt_ends_the_run(kind, runner, work):
    def interrupted(self, value):
        raise kind

    work("ToyOnce", interrupted)
    assert run(runner, shown(x=node("ToyOnce", value=1))).status == "interrupted"


def press_control_c(self=None, value=None):
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def python_hears_control_c():
    """Shells start commands in the background with SIGINT ignored, and Python leaves it so."""
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, found)


@pytest.mark.usefixtures("python_hears_control_c")
def test_control_c_in_a_node_ends_the_run_and_the_next_one_is_clean(runner, work):
    work("ToyOnce", press_control_c)
    prompt = shown(y=number(), x=node("ToyOnce", value=["y", 0]))
    result = run(runner, prompt)
    assert (result.status, result.error["node_id"]) == ("interrupted", "x")
    work("ToyOnce", lambda self, value: (value,))
    assert run(runner, prompt).executed == ("x", "show")


@pytest.mark.usefixtures("python_hears_control_c")
def test_control_c_while_coroutines_wait_ends_the_run(runner):
    timer = threading.Timer(0.05, press_control_c)
    timer.start()
    result = run(runner, shown(x=node("ToyAsync", value=1, seconds=60)))
    timer.join()
    assert (result.status, result.error["node_id"]) == ("interrupted", "x")
    assert run(runner, shown(x=node("ToyAsync", value=1))).status == "success"


# --- what it costs --------------------------------------------------------------------------


def test_the_runner_needs_neither_diffusers_nor_comfyui():
    source = (
        "import sys, lora_workbench.headless.graph\n"
        "print({'diffusers', 'transformers', 'nodes', 'comfy'} & set(sys.modules))"
    )
    child = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == "set()"


def test_inputs_of_a_class_are_asked_for_once_a_run(runner, monkeypatch):
    """They may list a folder of a network drive."""
    asked = []
    types = TOYS["ToyNumber"].INPUT_TYPES()
    monkeypatch.setattr(
        TOYS["ToyNumber"], "INPUT_TYPES", classmethod(lambda cls: asked.append(1) or types)
    )
    prompt = {str(index): number(index) for index in range(20)}
    shows = {f"show {index}": show([index, 0]) for index in prompt}
    run(runner, {**prompt, **shows})
    assert len(asked) == 2  # validation and run
