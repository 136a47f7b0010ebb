"""How much does the pack add to ComfyUI's start? Bar: at most 0.3 s, files in the disk cache.

A process imports what ComfyUI has imported by the time it loads custom nodes, then the pack as
ComfyUI does it, then asks each node for its inputs as /object_info does. The least of several
processes counts; on a busy machine look at the processor time.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import machine

REPOSITORY = Path(__file__).resolve().parents[1]
PROCESSES = 5
BAR = 0.3  # seconds

CHILD = """
import asyncio, json, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import torchvision_stub
torchvision_stub.install()
sys.argv = ["main.py", "--cpu", "--base-directory", {base!r}]
import comfy.options
comfy.options.enable_args_parsing()
import execution, nodes, server
asyncio.run(nodes.load_custom_node({empty!r}))  # ComfyUI's own imports at the first pack
started, cpu_started = time.perf_counter(), time.process_time()
assert asyncio.run(nodes.load_custom_node({pack!r}))
loaded, cpu_loaded = time.perf_counter(), time.process_time()
ours = [n for n in nodes.NODE_CLASS_MAPPINGS.values()
        if getattr(n, "RELATIVE_PYTHON_MODULE", "").startswith("custom_nodes.")]
for node in ours:
    node.INPUT_TYPES()
listed = time.perf_counter()
print(json.dumps({{
    "load": loaded - started, "cpu": cpu_loaded - cpu_started,
    "inputs": listed - loaded, "nodes": len(ours),
}}))
"""


def main():
    root = Path(os.environ.get("COMFYUI_PATH") or REPOSITORY / ".cache" / "ComfyUI-0.30.0")
    if not (root / "nodes.py").is_file():
        sys.exit(f"No ComfyUI at {root}. Fix: run `make test` once, or set COMFYUI_PATH.")
    results = [measure(root) for _ in range(PROCESSES)]
    loads = sorted(result["load"] for result in results)
    inputs = min(result["inputs"] for result in results)
    print(machine())
    print(f"{results[0]['nodes']} nodes of the pack, {PROCESSES} processes, {root.name}")
    cpu = min(result["cpu"] for result in results)
    print(f"  import of the pack   least {loads[0]:.3f} s, median {loads[PROCESSES // 2]:.3f} s")
    print(f"    its processor time {cpu:.3f} s")
    print(f"  inputs of its nodes  least {inputs:.3f} s")
    print(f"  bar {BAR} s: {'met' if loads[0] + inputs <= BAR else 'MISSED'}")


def measure(root):
    with tempfile.TemporaryDirectory() as base:
        pack = Path(base, "custom_nodes", "ComfyUI-LoRA-Workbench")
        for folder in ("custom_nodes", "models/loras", "user", "output", "input", "temp"):
            Path(base, folder).mkdir(parents=True)
        pack.symlink_to(REPOSITORY, target_is_directory=True)
        empty = Path(base, "custom_nodes", "empty.py")
        empty.write_text("NODE_CLASS_MAPPINGS = {}")
        tests = str(REPOSITORY / "tests" / "comfy")
        source = CHILD.format(
            root=str(root), tests=tests, base=base, empty=str(empty), pack=str(pack)
        )
        child = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, check=True
        )
    return json.loads(child.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
