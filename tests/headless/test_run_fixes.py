"""What people read when a ComfyUI refuses their graph, or does not start."""

import json

import pytest

from lora_workbench.headless.cli import main
from lora_workbench.headless.run_errors import NodeError
from lora_workbench.headless.run_fixes import (
    FIXES_HERE,
    FIXES_IN_COMFYUI,
    counted,
    with_fixes,
)

from .test_run_command import COMFYUI, comfyui_folder, stub_server  # noqa: F401

PROMPT = {
    "3": {"class_type": "KSampler", "inputs": {"steps": 0, "sampler_name": "eular"}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub/v1.5.safetensors"}},
    "5": {"class_type": "LoadImage", "inputs": {"image": "sea.png"}},
}


def refused(node, name, kind, message="Wrong"):
    return NodeError(node, "", PROMPT.get(node, {}).get("class_type", "X"), name, kind, message)


def answer(*errors):
    """ComfyUI 0.30's to POST /prompt, as far as it is read."""
    by_node = {}
    for node, name, kind, message in errors:
        entry = by_node.setdefault(node, {"errors": [], "class_type": PROMPT[node]["class_type"]})
        extra = {"input_name": name}
        entry["errors"].append(
            {"type": kind, "message": message, "details": name, "extra_info": extra}
        )
    error = {"type": "prompt_outputs_failed_validation", "message": "Failed", "details": ""}
    return {"error": error, "node_errors": by_node}


NO_FILE = ("4", "ckpt_name", "value_not_in_list", "Value not in list")
TOO_FEW = ("3", "steps", "value_smaller_than_min", "Value 0 smaller than min of 1")


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(PROMPT))
    return str(path)


def test_a_refused_graph_has_a_headline_and_each_input_a_fix(capsys, graph):
    body = json.dumps(answer(NO_FILE, TOO_FEW)).encode()
    with stub_server(COMFYUI | {"prompt": (400, body)}) as (_, address):
        assert main(["run", graph, "--comfyui", address]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ComfyUI refused the graph: 2 inputs are wrong."
    assert lines[1:] == [
        "Node 4 (CheckpointLoaderSimple), input 'ckpt_name':",
        "  Value not in list",
        "  Fix: put the file on the server, or use one that is there: --set 4.ckpt_name=NAME.",
        "Node 3 (KSampler), input 'steps':",
        "  Value 0 smaller than min of 1",
        "  Fix: give a value in the range: --set 3.steps=VALUE.",
    ]


def test_a_part_that_is_left_out_is_announced_as_such(capsys, graph, tmp_path):
    history = {"status": {"messages": [["execution_success", {}]]}, "outputs": {}}

    class Answers(dict):
        """Each run that is asked for is in the history."""

        def get(self, path, default=None):
            if path.startswith("history/"):
                return 200, json.dumps({path.partition("/")[2]: history}).encode()
            return super().get(path, default)

    body = json.dumps(answer(NO_FILE) | {"error": None}).encode()
    with stub_server(Answers(COMFYUI, prompt=(200, body))) as (_, address):
        main(["run", graph, "--comfyui", address, "--output", str(tmp_path)])
    shown = capsys.readouterr().err
    assert "ComfyUI left a part of the graph out: 1 input is wrong." in shown
    assert "--set 4.ckpt_name=NAME" in shown


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (refused(*NO_FILE), "put the file on the server"),
        (refused("5", "image", "custom_validation_failed"), "put the file on the server"),
        (refused("3", "sampler_name", "value_not_in_list"), "a value of the list: --set 3.sampler"),
        (refused("3", "model", "required_input_missing"), "export the graph again"),
        (refused("9", "", "missing_node_type"), "install the node's pack"),
        (refused("", "", "prompt_no_outputs"), "SaveImage"),
        (refused("3", "", "exception_during_validation"), "ComfyUI's log"),
    ],
)
def test_the_fix_fits_what_was_refused(error, fix):
    (fixed,) = with_fixes([error], PROMPT, FIXES_IN_COMFYUI)
    message, _, last = fixed.message.rpartition("\nFix: ")
    assert message == error.message
    assert fix in last


def test_a_node_that_says_what_to_do_is_not_talked_over():
    error = refused("3", "rows", "custom_validation_failed", "Bad rows.\n  Fix: write tags.")
    assert with_fixes([error], PROMPT, FIXES_IN_COMFYUI) == (error,)


def test_without_a_comfyui_none_is_blamed():
    assert FIXES_HERE.keys() == FIXES_IN_COMFYUI.keys()
    (fixed,) = with_fixes([refused("9", "", "missing_node_type")], PROMPT, FIXES_HERE)
    assert fixed.message.endswith("Fix: run this graph in ComfyUI: add --comfyui URL or PATH.")
    (fixed,) = with_fixes([refused(*NO_FILE)], PROMPT, FIXES_HERE)
    assert "--models: --set 4.ckpt_name=NAME" in fixed.message
    assert "path" not in fixed.message
    missing = refused("5", "image", "custom_validation_failed")
    (fixed,) = with_fixes([missing], PROMPT, FIXES_HERE)
    assert "give the path of a file: --set 5.image=NAME" in fixed.message


def test_only_inputs_are_counted():
    assert counted("No", [refused(*NO_FILE)]) == "No: 1 input is wrong."
    assert counted("No", [refused("9", "", "missing_node_type")]) == "No."


def test_a_comfyui_that_did_not_start_is_the_headline_and_its_log_has_no_colours(
    capsys,
    graph,
    comfyui_folder,  # noqa: F811
):
    folder = comfyui_folder(
        "print('\\x1b[31;1mno such\\x1b[0m module \\x1b]8;;http://x\\x07'); exit(1)"
    )
    assert main(["run", graph, "--comfyui", str(folder)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("ComfyUI did not start.\n  Problem: it ended with exit code 1\n")
    assert "    no such module" in shown
    assert "x1b" not in shown
    assert "The graph" not in shown
    assert "\nFix: " in shown
