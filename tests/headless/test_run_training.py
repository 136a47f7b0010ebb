"""Train LoRA and its use in one graph, by ``lora-workbench run`` without ComfyUI."""

import json
import re

import pytest
import torch

from lora_workbench.headless.cli import main

from ..training.conftest import Folder

SETTINGS = """run.steps = {steps}
adapter.rank = 2
optimizer.warmup_steps = 0
optimizer.schedule = "constant"
"""


@pytest.fixture(autouse=True)
def _one_thread():
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(steps=2, method="lora"):
    """From pictures to a picture with what was learnt of them."""
    base = {"model": ["1", 0], "clip": ["1", 1]}
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
        "2": node("LoraWorkbenchDataset", folder="dots", resolution=64, bucket_step=8),
        "3": node(
            "LoraWorkbenchTrainSettings",
            preset="quick look",
            overrides=SETTINGS.format(steps=steps) + f'adapter.method = "{method}"',
        ),
        "4": node(
            "LoraWorkbenchTrain",
            **base,
            vae=["1", 2],
            dataset=["2", 0],
            settings=["3", 0],
            seed=0,
            retrain=False,
            name="dots",
        ),
        "5": node(
            "LoraWorkbenchAdd", name="", strength_model=1.0, strength_clip=1.0, lora_model=["4", 0]
        ),
        "6": node("LoraWorkbenchApply", **base, rows="[]", lora_stack=["5", 0]),
        "7": node("CLIPTextEncode", text="a dot", clip=["6", 1]),
        "8": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "9": node(
            "KSampler",
            model=["6", 0],
            positive=["7", 0],
            negative=["7", 0],
            latent_image=["8", 0],
            seed=1,
            steps=1,
            cfg=1.0,
            denoise=1.0,
            sampler_name="euler",
            scheduler="normal",
        ),
        "10": node("VAEDecode", samples=["9", 0], vae=["1", 2]),
        "11": node("SaveImage", images=["10", 0], filename_prefix="dots"),
    }


@pytest.fixture
def run(models, tmp_path, capsys, monkeypatch):
    """Runs a graph in a folder with ``dots``; gives the exit code and the JSON document."""
    monkeypatch.setenv("LORA_WORKBENCH_HOME", str(tmp_path / "home"))
    Folder(tmp_path / "dots").fill(3)

    def run(prompt, *arguments):
        path = tmp_path / "graph.json"
        path.write_text(json.dumps(prompt))
        capsys.readouterr()
        options = ["--models", str(models), "--output", str(tmp_path / "out"), "--json"]
        code = main(["run", str(path), *options, *map(str, arguments)])
        return code, json.loads(capsys.readouterr().out)

    return run


def steps_of(document):
    found = re.search(r"(\d+), (\d+) of them now", json.dumps(document["outputs"]))
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("method", ["lora", "loha", "lokr", "oft"])
def test_a_graph_trains_and_uses_a_lora_and_does_not_train_it_twice(run, tmp_path, method):
    code, document = run(graph(method=method))
    assert (code, document["errors"]) == (0, [])
    assert steps_of(document) == (2, 2)
    assert (tmp_path / "out" / "loras" / "dots.safetensors").is_file()
    pictures = [item["file"] for item in document["outputs"] if "file" in item]
    assert len(pictures) == 1
    _, again = run(graph(method=method))
    assert steps_of(again) == (2, 0)


def test_pictures_of_the_command_line_may_lie_anywhere(run, tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "spots"
    Folder(elsewhere).fill(2)
    code, document = run(graph(), "--set", f"2.folder={elsewhere}")
    assert (code, document["errors"]) == (0, [])


def test_a_folder_outside_is_not_read_for_a_graph(run, tmp_path, tmp_path_factory):
    prompt = graph()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Folder(elsewhere).fill(2)
    prompt["2"]["inputs"]["folder"] = str(elsewhere)
    code, document = run(prompt)
    assert code == 2
    error = document["error"]
    assert "There is no folder" in error["headline"]
    assert error["facts"]["Looked in"].startswith(str(tmp_path))
    assert "--set 2.folder=PATH" in error["fix"]


def test_settings_tell_what_the_presets_cost_on_a_model(run):
    base = {"model": ["1", 0], "clip": ["1", 1]}
    settings = node("LoraWorkbenchTrainSettings", preset="style", overrides="", **base)
    code, document = run({"1": graph()["1"], "2": settings})
    assert code == 0
    shown = "\n".join(item["text"] for item in document["outputs"])
    costs = dict(
        re.findall(r"(style|character|quick look|these settings): ([\d,]+) modules", shown)
    )
    assert costs["style"] == costs["these settings"]
    assert int(costs["quick look"]) < int(costs["style"]) < int(costs["character"])
