"""What ComfyUI pays for the pack when it starts: no library that it does not bring itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .comfy_source import REPOSITORY
from .conftest import make_base_directory

# Extras of the pack, and libraries that an earlier import would only make slow.
BLOCKED = (
    *("diffusers", "peft", "accelerate", "matplotlib", "lycoris", "ray", "instant_clip_tokenizer"),
    *("bitsandbytes", "prodigyopt", "schedulefree", "torchao"),
)
LOAD = """
import asyncio, json, sys
sys.path[:0] = [{root!r}, {tests!r}]
import torchvision_stub
torchvision_stub.install()
for name in {blocked!r}:
    sys.modules[name] = None
sys.argv = ["main.py", "--cpu", "--base-directory", {base!r}]
import comfy.options
comfy.options.enable_args_parsing()
import execution, nodes
asyncio.run(nodes.load_custom_node({empty!r}))  # ComfyUI's own imports at the first pack
before = set(sys.modules)
assert asyncio.run(nodes.load_custom_node({pack!r}))
ours = [name for name, node in nodes.NODE_CLASS_MAPPINGS.items()
        if getattr(node, "RELATIVE_PYTHON_MODULE", "").startswith("custom_nodes.")]
inputs = [nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES() for name in ours]
added = sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})
print(json.dumps({{"nodes": ours, "added": added}}))
"""


@pytest.fixture(scope="module")
def loaded(comfy, tmp_path_factory):
    """What one fresh ComfyUI says after it has loaded the pack with every extra absent."""
    base = tmp_path_factory.mktemp("bare")
    pack = make_base_directory(base)
    empty = pack.with_name("empty.py")
    empty.write_text("NODE_CLASS_MAPPINGS = {}")
    source = LOAD.format(
        root=str(comfy.root),
        tests=str(Path(__file__).parent),
        blocked=BLOCKED,
        base=str(base),
        empty=str(empty),
        pack=str(pack),
    )
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_every_node_is_there_with_every_extra_absent(loaded, comfy):
    assert set(loaded["nodes"]) == set(comfy.pack_nodes())
    assert len(loaded["nodes"]) >= 11


def test_the_pack_brings_in_nothing_but_itself_and_python(loaded):
    """Everything else that it uses, ComfyUI has imported before."""
    foreign = [name for name in loaded["added"] if name not in sys.stdlib_module_names]
    assert all("ComfyUI-LoRA-Workbench" in name for name in foreign), foreign


def test_nothing_is_asked_to_be_installed_inside_comfyui():
    requirements = (REPOSITORY / "requirements.txt").read_text().splitlines()
    assert [line for line in requirements if line.strip() and not line.startswith("#")] == []
