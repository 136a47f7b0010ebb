"""Every example runs, in both of its forms."""

import json
import os
import re
import subprocess
import sys

import pytest

from lora_workbench.headless.cli import main
from lora_workbench.headless.workflow.convert import to_api

from .checkpoints import SLIM, lora_targets, write_lora
from .comfy_source import REPOSITORY
from .training_runs import pictures

API = sorted((REPOSITORY / "examples" / "api").glob("*.json"))
UI = sorted((REPOSITORY / "example_workflows").glob("*.json"))
ONLY_IN_COMFYUI = ("schedule-hooks",)
SMALL = {
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 2},
    "LoraWorkbenchDataset": {"resolution": 64, "bucket_step": 8},
    "LoraWorkbenchTrainSettings": {"overrides": "run.steps = 2\noptimizer.warmup_steps = 1"},
}

every_api_example = pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
every_workflow = pytest.mark.parametrize("path", UI, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def models(server, server_base, slim_checkpoint):
    """The files that the examples name."""
    checkpoints = server_base / "models" / "checkpoints"
    os.link((checkpoints / slim_checkpoint).resolve(), checkpoints / "sd15.safetensors")
    for seed, name in enumerate(("style", "detail")):
        path = server.loras_dir / f"{name}.safetensors"
        write_lora(path, lora_targets(SLIM), seed=seed, alpha=2.0)
    pictures(server.input_dir / "my-pictures", count=2)


def small(path):
    """--set for a picture that takes a second."""
    graph = json.loads(path.read_text())
    return [
        argument
        for node, entry in graph.items()
        for name, value in SMALL.get(entry["class_type"], {}).items()
        for argument in ("--set", f"{node}.{name}={value}")
    ]


def test_every_example_has_both_forms():
    assert API
    assert [path.name for path in API] == [path.name for path in UI]


@every_api_example
def test_an_example_runs(path, server, models, tmp_path, capsys):
    capsys.readouterr()
    command = ["run", str(path), "--comfyui", server.address, "--output", str(tmp_path), "--json"]
    code = main([*command, *small(path)])
    document = json.loads(capsys.readouterr().out)
    assert (code, document["errors"]) == (0, [])
    graph = json.loads(path.read_text())
    assert {*document["executed"], *document["cached"]} == set(graph)
    kinds = ("SaveImage", "PreviewImage")
    saved = [node for node, entry in graph.items() if entry["class_type"] in kinds]
    assert sorted(o["node"] for o in document["outputs"] if "file" in o) == sorted(saved)
    ours = [node for node, entry in graph.items() if entry["class_type"].startswith("LoraWork")]
    assert ours


@every_api_example
def test_the_embedded_host_runs_an_example_in_the_same_order(
    path, server, server_base, models, tmp_path, capsys
):
    server.forget()
    common = ["run", str(path), *small(path), "--json"]
    code = main([*common, "--comfyui", server.address, "--output", str(tmp_path / "comfyui")])
    theirs = json.loads(capsys.readouterr().out)
    options = ["--models", str(server_base / "models"), "--output", str(tmp_path / "embedded")]
    command = [sys.executable, "-m", "lora_workbench.headless.cli", *common, *options]
    # Pictures for training are found from the folder that the command runs in.
    here = server.input_dir
    finished = subprocess.run(command, capture_output=True, text=True, cwd=here)
    ours = json.loads(finished.stdout)
    if path.stem in ONLY_IN_COMFYUI:
        assert finished.returncode == 2
        assert "--comfyui" in finished.stderr
        return
    assert (code, finished.returncode, ours["errors"]) == (0, 0, [])
    assert sorted(ours["executed"]) == sorted(theirs["executed"])
    graph, described = json.loads(path.read_text()), server.get("object_info")
    outputs = [key for key in graph if described[graph[key]["class_type"]]["output_node"]]
    # ComfyUI: several outputs lie in a set, whose order is another in each process (0.30).
    assert len(outputs) > 1 or ours["executed"] == theirs["executed"]


@every_workflow
def test_a_workflow_is_its_api_example_on_the_canvas(path, server):
    expected = json.loads((REPOSITORY / "examples" / "api" / path.name).read_text())
    assert to_api(json.loads(path.read_text()), server.get("object_info")) == expected


def test_comfyui_offers_the_workflows_as_templates(server):
    (offered,) = server.get("workflow_templates").values()
    assert sorted(offered) == [path.stem for path in UI]


@every_workflow
def test_a_note_names_the_files_that_a_workflow_needs(path):
    (note,) = (node for node in json.loads(path.read_text())["nodes"] if node["type"] == "Note")
    graph = (REPOSITORY / "examples" / "api" / path.name).read_text()
    for name in re.findall(r"([\w-]+)\.safetensors|<lora:([\w-]+)", graph):
        assert f"{''.join(name)}.safetensors" in note["widgets_values"][0]


@every_workflow
def test_a_workflow_opens_beside_the_bars_of_the_canvas(path):
    workflow = json.loads(path.read_text())
    view = workflow["extra"]["ds"]
    left, top = (
        min(
            view["scale"] * (node["pos"][axis] + view["offset"][axis]) for node in workflow["nodes"]
        )
        for axis in (0, 1)
    )
    assert left > 60 + 20  # pixels of the sidebar
    assert top - 30 > 88  # of the tabs and the menu, above a title


@every_workflow
def test_nodes_of_a_workflow_do_not_overlap(path):
    nodes = json.loads(path.read_text())["nodes"]
    title = 30  # pixels above a node's position
    boxes = [(*n["pos"], n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in nodes]
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other_left, other_top, other_right, other_bottom in boxes[index + 1 :]:
            apart = right < other_left or other_right < left
            assert apart or bottom < other_top - title or other_bottom < top - title
