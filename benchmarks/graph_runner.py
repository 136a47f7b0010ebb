"""What does running a graph cost beside its nodes, here and in ComfyUI's own executor?

Graphs of 50 nodes that do nothing: a chain, and a mesh in which each node uses the two before it.
Fresh = checked and run with nothing cached; cached = the same prompt checked and run again. Both
sides in one process, with every event sent to a function that ignores it. ComfyUI with its classic
cache, which ours is; a RAM-pressure cache (its default) only adds to it. Figures are min / min over
interleaved repetitions. Bars: cached at most 2 ms; fresh at most twice ComfyUI's.
"""

import asyncio
import copy
import logging
import sys
import tempfile
from pathlib import Path

import torch

from lora_workbench.headless.graph import Runner, validate

from harness import interleaved, machine

TESTS = Path(__file__).resolve().parents[1] / "tests" / "comfy"
NODES = 50
REPETITIONS = 100
BAR_CACHED = 2.0  # ms
BAR_FRESH = 2.0  # times ComfyUI's


class BenchmarkAdd:
    """Adds two numbers."""

    FUNCTION = "work"
    CATEGORY = "benchmark"
    RETURN_TYPES = ("INT",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802  ComfyUI's name
        """Two numbers."""
        return {"required": {"a": ("INT", {"min": 0}), "b": ("INT", {"default": 0})}}

    def work(self, a, b):
        """The sum."""
        return (a + b,)


class BenchmarkShow(BenchmarkAdd):
    """Ends a graph."""

    OUTPUT_NODE = True

    def work(self, a, b):
        """Show the first."""
        return {"ui": {"text": [a]}, "result": (a,)}


CLASSES = {"BenchmarkAdd": BenchmarkAdd, "BenchmarkShow": BenchmarkShow}


class Ignore:
    """What PromptExecutor needs of a server."""

    client_id = last_node_id = last_prompt_id = None

    def send_sync(self, event, data, sid=None):
        """Send it nowhere."""


def graph(is_mesh):
    """NODES nodes in API form; the last one is the output."""
    prompt = {"0": {"class_type": "BenchmarkAdd", "inputs": {"a": 1, "b": 1}}}
    for index in range(1, NODES):
        before = [str(max(index - 2, 0)), 0] if is_mesh else index
        inputs = {"a": [str(index - 1), 0], "b": before}
        prompt[str(index)] = {"class_type": "BenchmarkAdd", "inputs": inputs}
    prompt[str(NODES - 1)]["class_type"] = "BenchmarkShow"
    return prompt


class Ours:
    """Our runner; a new one has nothing cached."""

    def __init__(self):
        self._runner = Runner(CLASSES)

    def run(self, prompt):
        """Check the prompt and run it."""
        checked = validate(prompt, CLASSES)
        options = {"outputs": checked.outputs, "on_event": lambda name, data: None}
        result = self._runner.run(checked.prompt, "id", **options)
        assert result.status == "success"


class Theirs:
    """ComfyUI's executor."""

    def __init__(self):
        import execution

        self._execution = execution
        kept = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        classic = execution.CacheType.CLASSIC
        self._executor = execution.PromptExecutor(Ignore(), cache_type=classic, cache_args=kept)

    def run(self, prompt):
        """Check the prompt and run it."""
        prompt = copy.deepcopy(prompt)  # it writes into it, as into what a request brought
        answer = asyncio.run(self._execution.validate_prompt("id", prompt, None))
        self._executor.execute(prompt, "id", {"client_id": "benchmark"}, answer[2])
        assert self._executor.success


def start_comfyui(base_directory):
    """Make ComfyUI importable, on the CPU; the tests know where it is."""
    sys.path.insert(0, str(TESTS))
    import comfy_source
    import torchvision_stub

    torchvision_stub.install()
    root = comfy_source.comfyui_path()
    sys.path.insert(0, str(root))
    sys.argv = ["main.py", "--cpu", "--base-directory", base_directory]
    import comfy.options  # noqa: TID251

    comfy.options.enable_args_parsing()
    import execution  # noqa: F401  (reads sys.argv)

    import nodes

    nodes.NODE_CLASS_MAPPINGS.update(CLASSES)
    logging.disable(logging.CRITICAL)
    return root.name


def compare(name, prompt):
    """Print both sides' milliseconds and whether the bars are met."""
    ours, theirs = Ours(), Theirs()
    ours.run(prompt)
    theirs.run(prompt)
    steps = {
        "ours fresh": lambda: Ours().run(prompt),
        "theirs fresh": lambda: Theirs().run(prompt),
        "ours cached": lambda: ours.run(prompt),
        "theirs cached": lambda: theirs.run(prompt),
    }
    timings = interleaved(steps, REPETITIONS)
    best = {step: timings.best(step) * 1e3 for step in steps}
    ratio = best["ours fresh"] / best["theirs fresh"]
    for state in ("fresh", "cached"):
        print(
            f"  {name:5} {state:6}  ours {best[f'ours {state}']:6.2f} ms"
            f"  ComfyUI {best[f'theirs {state}']:6.2f} ms"
        )
    met = best["ours cached"] <= BAR_CACHED and ratio <= BAR_FRESH
    print(f"  {name:5} fresh {ratio:.2f} x ComfyUI's; bars {'met' if met else 'MISSED'}")


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as base_directory:
        Path(base_directory, "custom_nodes").mkdir()
        version = start_comfyui(base_directory)
        print(machine())
        print(f"{NODES} nodes, {REPETITIONS} repetitions, {version}")
        compare("chain", graph(is_mesh=False))
        compare("mesh", graph(is_mesh=True))


if __name__ == "__main__":
    main()
