"""``lora-workbench run`` without ComfyUI."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from lora_workbench.headless import run_embedded
from lora_workbench.headless.cli import main
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors

from .tiny_pipeline import WIDTH

GRAPH = {
    "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny.safetensors"}),
    "2": ("CLIPTextEncode", {"text": "a fox", "clip": ["1", 1]}),
    "3": ("EmptyLatentImage", {"width": 32, "height": 32, "batch_size": 1}),
    "4": (
        "KSampler",
        {
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["2", 0],
            "cfg": 1.0,
            "latent_image": ["3", 0],
            "seed": 1,
            "steps": 2,
            "denoise": 1.0,
            "sampler_name": "euler",
            "scheduler": "normal",
        },
    ),
    "5": ("VAEDecode", {"samples": ["4", 0], "vae": ["1", 2]}),
    "6": ("SaveImage", {"images": ["5", 0], "filename_prefix": "fox"}),
}


def prompt(**changes):
    return {
        key: {"class_type": kind, "inputs": dict(inputs)}
        for key, (kind, inputs) in (GRAPH | changes).items()
    }


@pytest.fixture
def command(models, tmp_path, capsys, monkeypatch):
    """Runs a graph; gives the exit code, the JSON document, and standard error."""
    monkeypatch.setenv("LORA_WORKBENCH_HOME", str(tmp_path / "home"))

    def run(graph, *arguments):
        path = tmp_path / "graph.json"
        path.write_text(json.dumps(graph))
        capsys.readouterr()
        options = ["--models", str(models), "--output", str(tmp_path / "out"), "--json"]
        code = main(["run", str(path), *options, *map(str, arguments)])
        shown = capsys.readouterr()
        return code, json.loads(shown.out), shown.err

    return run


def test_a_graph_runs_and_its_picture_lies_in_the_output_folder(command, tmp_path):
    code, document, _ = command(prompt())
    assert (code, document["status"], document["errors"]) == (0, "success", [])
    assert sorted(document["executed"]) == sorted(GRAPH)
    (output,) = document["outputs"]
    assert output["file"] == str(tmp_path / "out" / "fox_00001_.png")
    with Image.open(output["file"]) as picture:
        assert json.loads(picture.info["prompt"])["4"]["inputs"]["seed"] == 1


def test_the_same_graph_gives_the_same_picture_and_another_seed_another(command):
    def pixels(*arguments):
        _, document, _ = command(prompt(), *arguments)
        with Image.open(document["outputs"][0]["file"]) as picture:
            return picture.tobytes()

    assert pixels() == pixels() != pixels("--set", "KSampler.seed=2")


def test_a_preview_is_copied_and_a_picture_of_the_command_line_is_read(command, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (32, 32), (9, 99, 199)).save(tmp_path / "elsewhere" / "blue.png")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    path = tmp_path / "elsewhere" / "blue.png"
    code, document, _ = command(graph, "--set", f"LoadImage.image={path}")
    assert code == 0, document
    (output,) = document["outputs"]
    with Image.open(output["file"]) as picture:
        assert picture.getpixel((0, 0)) == (9, 99, 199)


BAD = {
    "unknown node": (
        prompt(**{"9": ("ControlNetApply", {})}),
        "missing_node_type",
        r"ControlNetApply.*--comfyui",
    ),
    "cycle": (prompt(**{"5": ("VAEDecode", {"samples": ["4", 0], "vae": ["5", 0]})}), None, ""),
    "missing input": (prompt(**{"3": ("EmptyLatentImage", {})}), "required_input_missing", ""),
    "wrong type": (
        prompt(**{"5": ("VAEDecode", {"samples": ["1", 0], "vae": ["1", 2]})}),
        "return_type_mismatch",
        "",
    ),
    "out of range": (
        prompt(**{"3": ("EmptyLatentImage", {"width": 8, "height": 32, "batch_size": 1})}),
        "value_smaller_than_min",
        "",
    ),
    "not in the list": (
        prompt(**{"1": ("CheckpointLoaderSimple", {"ckpt_name": "no.safetensors"})}),
        "value_not_in_list",
        "",
    ),
    "no output": ({"3": prompt()["3"]}, "prompt_no_outputs", ""),
    "link to nowhere": (
        prompt(**{"6": ("SaveImage", {"images": ["77", 0], "filename_prefix": "x"})}),
        None,
        "",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_graph_is_refused_before_anything_runs(name, command, tmp_path):
    graph, kind, text = BAD[name]
    code, document, shown = command(graph)
    assert (code, document["status"]) == (2, "refused")
    assert document["executed"] == document["outputs"] == []
    assert not list((tmp_path / "out").glob("*"))
    assert kind is None or kind in {error["type"] for error in document["errors"]}
    assert re.search(text, shown, re.DOTALL)
    assert shown.startswith("The graph cannot be run")
    assert all("\nFix: " in error["message"] for error in document["errors"])


def test_a_lora_for_another_base_is_an_error_of_its_node(command, models):
    path = models / "loras" / "other.safetensors"
    write_safetensors(path, {"lora_unet_other.lora_down.weight": torch.ones(1, WIDTH)}, None, True)
    inputs = {"model": ["1", 0], "clip": ["1", 1], "rows": "<lora:other:1>"}
    graph = prompt(**{"7": ("LoraWorkbenchApply", inputs)})
    graph["4"]["inputs"]["model"] = ["7", 0]
    code, document, shown = command(graph)
    assert (code, document["status"]) == (2, "error")
    (error,) = document["errors"]
    assert error["class"] == "LoraWorkbenchApply"
    assert "Fix:" in shown


def test_an_output_that_is_a_file_is_refused(command, tmp_path):
    (tmp_path / "file").touch()
    code, document, _ = command(prompt(), "--output", str(tmp_path / "file"))
    assert code == 2
    assert "name a folder" in document["error"]["fix"]


def test_without_libraries_the_fix_is_one_pip_line(command, monkeypatch, tmp_path):
    monkeypatch.setattr(run_embedded, "missing_libraries", lambda: ["diffusers"])
    code, document, _ = command(prompt())
    assert code == 2
    assert "comfyui-lora-workbench[headless]" in document["error"]["fix"]


def test_help_imports_no_model_library():
    code = (
        "import sys; from lora_workbench.headless.cli import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'diffusers', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ)
    assert finished.returncode == 0, finished.stderr


def test_a_saved_merge_can_be_loaded_by_the_next_graph(command, models, tmp_path):
    graph = {
        "1": prompt()["1"],
        "2": {
            "class_type": "LoraWorkbenchSaveModel",
            "inputs": {
                "model": ["1", 0],
                "clip": ["1", 1],
                "vae": ["1", 2],
                "filename": "copy",
                "dtype": "fp16",
            },
        },
    }
    code, document, _ = command(graph)
    assert code == 0, document
    saved = tmp_path / "out" / "copy_00001_.safetensors"
    tensors = open_safetensors(saved).tensors
    assert {str(info.dtype) for info in tensors.values()} == {"torch.float16"}
    assert (
        tensors.keys()
        == open_safetensors(models / "checkpoints" / "tiny.safetensors").tensors.keys()
    )
