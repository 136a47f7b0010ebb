"""Two processes on one run, on the CPU, by ``accelerate launch``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.training.config import AdapterConfig, CheckpointConfig, ValidationConfig

from .runs import ListFeed, Pick, Quiet, run, short_run

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os
import sys
from pathlib import Path
import torch
from tests.training.test_processes import both
torch.set_num_threads(1)
both(Path(sys.argv[1]), int(os.environ["RANK"]))
"""
STEPS = 3


def both(folder, process):
    """A run with two pictures a batch, which process 1 asks to stop; one with a single picture.

    Batches of two and one by turns leave the second process without a sample in some. What the
    processes measure differs, as their devices might.
    """
    for batch_size in (2, 1):
        config = short_run(AdapterConfig(rank=2, dropout=0.2), steps=STEPS, accumulation=2)
        config = type(config)(
            **{
                **vars(config),
                "validation": ValidationConfig(every=1),
                "checkpoint": CheckpointConfig(every=1, keep=9),
            }
        )
        feed = ListFeed(count=3, batch_size=batch_size)
        feed.validation = lambda feed=feed: [feed.load([Pick(process)], [(0, 0)])]
        watcher = Quiet(stop_after=2 if process and batch_size == 2 else None)
        values, losses = run(config, folder / f"batch-{batch_size}", feed=feed, watcher=watcher)
        facts = {"process": process, "losses": losses, "measured": watcher.measured}
        torch.save({**facts, "values": values}, folder / f"{process}-{batch_size}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launched(folder, SCRIPT)
    return folder


def launched(folder, script):
    """Run a script in two processes, with the folder as its argument."""
    (folder / "both.py").write_text(script)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # Without --multi_gpu it starts one process where there is no GPU; port 0 is any free one.
    launch = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *launch,
            str(folder / "both.py"),
            str(folder),
        ],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def found(folder, process, batch_size):
    return torch.load(folder / f"{process}-{batch_size}.pt", weights_only=True)


@pytest.mark.parametrize("batch_size", [2, 1])
def test_two_processes_give_what_one_gives(two_processes, tmp_path, batch_size):
    """Also with batches of one, which they take by turns; the sums round."""
    both(tmp_path, 0)
    alone = found(tmp_path, 0, batch_size)
    first, second = (found(two_processes, process, batch_size) for process in (0, 1))
    assert first["losses"] == second["losses"]
    assert first["measured"] == second["measured"]
    for name, value in first["values"].items():
        assert torch.equal(value, second["values"][name])
    count = len(first["losses"])
    assert first["losses"] == pytest.approx(alone["losses"][:count], rel=1e-5)
    if count == STEPS:
        for name, value in first["values"].items():
            torch.testing.assert_close(value, alone["values"][name], rtol=1e-3, atol=1e-5)


APART = """
import os
import sys
from pathlib import Path
from tests.training.runs import tiny_trainable
from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.processes import Processes
from lora_workbench.training.run import _refuse_apart
class Task:
    model, folder = tiny_trainable(), Path(".")
_refuse_apart(Task, 20)
try:
    _refuse_apart(Task, 20 * int(os.environ["RANK"]))
except LoraError as error:
    Path(sys.argv[1], os.environ["RANK"]).write_text(str(error))
Processes().wait()
"""


def test_processes_that_see_other_states_are_all_refused(tmp_path):
    """As machines with folders of their own: sums of two runs would be neither."""
    launched(tmp_path, APART)
    told = {path.name: path.read_text() for path in tmp_path.glob("[01]")}
    assert set(told) == {"0", "1"}
    assert all("on a disk that all machines share" in text for text in told.values())


def test_all_stop_at_the_step_at_which_one_is_asked_to(two_processes):
    assert [len(found(two_processes, process, 2)["losses"]) for process in (0, 1)] == [2, 2]


def test_the_first_process_alone_writes_states(two_processes):
    states = sorted(path.name for path in two_processes.glob("batch-1/*"))
    assert states == [f"state-{step:08}.safetensors" for step in (1, 2, 3)]
    assert open_safetensors(two_processes / "batch-1" / states[-1]).metadata["step"] == "3"
