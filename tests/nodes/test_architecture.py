"""The directions of dependencies, and what every node must have."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from lora_workbench.nodes import NODES, node_mappings

ROOT = Path(__file__).parents[2]
PACKAGES = ("lora_core", "nodes", "hosts", "headless", "training")
COMFY = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "execution"}
HEAVY = {"diffusers", "transformers", "peft", "accelerate", "numpy", "numba", "aiohttp"}
COMPILED = "lora_core/patching/loops.py"  # needs the extra [cpu]; `kernels` loads it by its path


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    """Top names of absolute imports, and (level, name) of relative ones."""
    absolute, relative = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            absolute |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                folder = path.parent.joinpath(*[".."] * (node.level - 1)).resolve()
                target = folder.joinpath(*(node.module or "").split("."))
                relative.add(str(target.relative_to(ROOT)).partition("/")[0])
            else:
                absolute.add((node.module or "").partition(".")[0])
    return absolute, relative


@pytest.mark.parametrize("path", modules("lora_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_only_itself_torch_and_the_standard_library(path):
    absolute, relative = imports(path)
    allowed = {"numba", "numpy"} if path == ROOT / COMPILED else set()
    assert not absolute & (COMFY | HEAVY) - allowed
    assert relative <= {"lora_core"}


@pytest.mark.parametrize("path", modules("training"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_trainer_knows_the_core_and_no_host(path):
    assert imports(path)[1] <= {"lora_core", "training", "version.py", "version"}


@pytest.mark.parametrize("path", modules("nodes"), ids=lambda p: str(p.relative_to(ROOT)))
def test_nodes_know_the_core_and_the_host_protocol_only(path):
    absolute, relative = imports(path)
    allowed = {"numpy", "PIL"} if path == ROOT / "nodes/charts.py" else set()
    assert not absolute & (COMFY | HEAVY) - allowed
    assert relative <= {"lora_core", "nodes", "hosts", "training"}


@pytest.mark.parametrize("path", modules("hosts"), ids=lambda p: str(p.relative_to(ROOT)))
def test_hosts_know_the_core_and_no_node(path):
    assert imports(path)[1] <= {"lora_core", "hosts", "training", "version.py", "version"}


@pytest.mark.parametrize("path", modules("training"), ids=lambda p: str(p.relative_to(ROOT)))
def test_training_knows_the_core_and_no_host(path):
    assert imports(path)[1] <= {"lora_core", "training", "version"}


@pytest.mark.parametrize("package", PACKAGES)
def test_only_hosts_comfy_imports_comfyui(package):
    for path in modules(package):
        if "hosts/comfy" not in path.as_posix():
            assert not imports(path)[0] & COMFY, path


@pytest.mark.parametrize("package", PACKAGES)
def test_inside_the_pack_imports_are_relative(package):
    """ComfyUI loads the pack by path: it has no absolute name there."""
    for path in modules(package):
        assert "lora_workbench" not in imports(path)[0], path


def test_every_package_is_in_pyproject():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package in PACKAGES:
        for init in (ROOT / package).rglob("__init__.py"):
            name = ".".join(["lora_workbench", *init.parent.relative_to(ROOT).parts])
            assert f'"{name}"' in text, name


SCRIPTS = sorted((ROOT / "web").rglob("*.js"))


def test_one_script_names_comfyui_and_one_registers():
    """ComfyUI's page imports every file below web/: the others must do nothing by themselves."""
    texts = {str(path.relative_to(ROOT / "web")): path.read_text("utf-8") for path in SCRIPTS}
    assert [name for name, text in texts.items() if "/scripts/" in text] == ["comfy.js"]
    assert [name for name, text in texts.items() if "registerExtension" in text] == ["main.js"]
    for name in texts:
        if name.startswith("extensions/"):
            assert f"./{name}" in texts["main.js"]


def test_every_node_that_says_something_has_a_box_for_it():
    listed = re.search(r"TALKING = \[(.*?)\]", (ROOT / "web/extensions/report.js").read_text())
    talking = {
        node.__name__
        for node in NODES
        if ".to_ui()" in Path(inspect.getfile(node)).read_text(encoding="utf-8")
    }
    assert {f"LoraWorkbench{name}" for name in re.findall(r'"(\w+)"', listed[1])} == talking


class NoHost:
    def lora_names(self):
        return ["a.safetensors"]


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_node_is_described_and_has_a_help_page(node):
    bound = node.bound_to(NoHost())
    assert bound.__name__ == node.__name__
    assert len(bound.RETURN_TYPES) == len(bound.RETURN_NAMES) == len(bound.OUTPUT_TOOLTIPS)
    assert bound.DESCRIPTION
    inputs = bound.INPUT_TYPES()
    for kind in ("required", "optional"):
        for name, (_, options) in inputs[kind].items():
            assert options["tooltip"], name
    page = (ROOT / "web" / "docs" / f"{node.__name__}.md").read_text(encoding="utf-8")
    for name in [*inputs["required"], *inputs["optional"], *bound.RETURN_NAMES]:
        assert re.search(rf"`{name}`", page), name


FROZEN = {
    "LoraWorkbenchApply": ["model", "rows", "clip", "lora_stack", "mode", "unmatched"],
    "LoraWorkbenchLoad": [
        *("lora_name", "strength_model", "strength_clip", "lora_stack", "weighting", "sha256"),
    ],
    "LoraWorkbenchStack": ["rows", "lora_stack"],
    "LoraWorkbenchAdd": ["lora_model", "name", "strength_model", "strength_clip", "lora_stack"],
    "LoraWorkbenchPrompt": ["text"],
    "LoraWorkbenchWeight": ["lora_stack", "weighting", "which"],
    "LoraWorkbenchMerge": ["model", "lora_stack", "clip", "mode", "undo"],
    "LoraWorkbenchUnmerge": ["model", "clip"],
    "LoraWorkbenchSaveModel": ["model", "clip", "vae", "filename", "dtype"],
    "LoraWorkbenchInspect": ["lora_model", "lora_stack", "model", "clip"],
    "LoraWorkbenchHooks": ["lora_stack", "schedule"],
    "LoraWorkbenchDataset": [
        *("folder", "resolution", "trigger_word", "default_caption", "repeats", "shuffle_tags"),
        *("keep_tags", "caption_dropout", "flip", "crop", "buckets", "bucket_step", "masks"),
        *("mask_folder", "regularisation", "validation"),
    ],
    "LoraWorkbenchTrainSettings": ["preset", "overrides", "model", "clip"],
    "LoraWorkbenchTrain": [
        *("model", "clip", "vae", "dataset", "settings", "seed", "retrain", "name"),
    ],
}


def test_ids_and_the_order_of_inputs_are_frozen():
    """A saved workflow keeps widget values by position: new inputs are appended to these lists."""
    classes, names = node_mappings(NoHost())
    assert set(classes) == set(names) == set(FROZEN)
    for node_id, expected in FROZEN.items():
        inputs = classes[node_id].INPUT_TYPES()
        got = [*inputs["required"], *inputs["optional"]]
        assert got[: len(expected)] == expected
