"""Train LoRA asks to run again where a run of its was stopped."""

from types import SimpleNamespace

import pytest

from lora_workbench.nodes.train import LoraWorkbenchTrain


@pytest.mark.parametrize(
    ("stopped", "asked", "goes_on"),
    [
        ({("lora", 0, "k")}, {"name": "lora", "seed": 0}, True),
        ({("lora", 0, "k")}, {}, True),
        ({("lora", 0, "k")}, {"name": "lora", "seed": 1}, False),
        ({("lora", 7, "k")}, {"name": "lora", "seed": None}, True),
        ({("cat", 7, "k")}, {"name": None, "seed": 7}, True),
        ({("cat", 7, "k")}, {"name": "lora", "seed": None}, False),
        (set(), {"name": None, "seed": None}, False),
    ],
)
def test_a_stopped_run_goes_on_also_where_inputs_are_linked(stopped, asked, goes_on):
    """ComfyUI gives None for a linked input."""
    node = type("Train", (LoraWorkbenchTrain,), {"host": SimpleNamespace(stopped_runs=stopped)})
    assert bool(node.IS_CHANGED(**asked)) == goes_on
