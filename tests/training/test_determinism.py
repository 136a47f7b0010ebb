"""The same seed gives the same bits: whatever else is trained, and after a stop anywhere."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.config import AdapterConfig, OptimizerConfig, ValidationConfig
from lora_workbench.training.optimizer import OPTIMIZERS
from lora_workbench.training.state import latest_state

from .runs import Quiet, run, short_run

EVERYTHING = {
    "adapter": AdapterConfig(rank=4, dropout=0.2, text_encoder=("te1 & q", "te1 & v")),
    "optimizer": OptimizerConfig(
        rate=1e-3, schedule="cosine", warmup_steps=2, lora_plus=4.0, text_encoder_rate=5e-4
    ),
    "steps": 7,
    "accumulation": 2,
    "ema": 0.9,
    "seed": 3,
}

_LYCORIS = {
    **EVERYTHING,
    "optimizer": OptimizerConfig(rate=1e-3, schedule="cosine", warmup_steps=2),
}
TEXT = ("te1 & q", "te1 & v")
RUNS = {
    "lora": EVERYTHING,
    "loha": {**_LYCORIS, "adapter": AdapterConfig("loha", 2, dropout=0.2, text_encoder=TEXT)},
    "lokr": {**_LYCORIS, "adapter": AdapterConfig("lokr", 1, factor=2, text_encoder=TEXT)},
    "oft": {**_LYCORIS, "adapter": AdapterConfig("oft", 2, rescale=True, text_encoder=TEXT)},
}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("name", RUNS)
def test_two_runs_are_equal_bit_for_bit(name, tmp_path):
    config = short_run(**RUNS[name])
    torch.manual_seed(1)
    first, losses = run(config, tmp_path / "a")
    torch.manual_seed(2)  # the global numbers are nobody's business
    second, again = run(config, tmp_path / "b")
    assert same(first, second)
    assert losses == again


def test_another_seed_is_another_run(tmp_path):
    first, _ = run(short_run(steps=2, seed=0), tmp_path / "a")
    second, _ = run(short_run(steps=2, seed=1), tmp_path / "b")
    assert not any(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("method", "rank"), [("lora", 4), ("loha", 2), ("lokr", 1), ("oft", 2)])
def test_a_factor_starts_alike_whatever_else_is_trained(method, rank, tmp_path):
    alone = AdapterConfig(method, rank, targets=("attn1 & q",))
    stopped = Quiet(stop_after=0)
    few, _ = run(short_run(alone), tmp_path / "a", watcher=stopped)
    many, _ = run(short_run(AdapterConfig(method, rank)), tmp_path / "b", watcher=stopped)
    assert few.keys() < many.keys()
    assert all(torch.equal(few[name], many[name]) for name in few)


@pytest.mark.parametrize(
    ("name", "stops"),
    [("lora", (3,)), ("lora", (2, 2)), ("lora", (1, 1, 1)), ("loha", (2, 2)), ("lokr", (2, 2)),
     ("oft", (2, 2))],
)  # fmt: skip
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(name, stops, tmp_path):
    config = short_run(**RUNS[name])
    whole, losses = run(config, tmp_path / "whole")
    for steps in stops:
        run(config, tmp_path / "parts", watcher=Quiet(stop_after=steps))
    parts, again = run(config, tmp_path / "parts")
    assert same(whole, parts)
    assert losses == again


def test_an_interrupt_keeps_what_is_done(tmp_path):
    config = short_run(**EVERYTHING)
    whole, _ = run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts", watcher=Quiet(raise_after=4))
    assert latest_state(tmp_path / "parts", "k", pytest.fail).step == 4
    assert same(whole, run(config, tmp_path / "parts")[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_where_it_stopped(name, tmp_path):
    rate = 1.0 if name == "prodigy" else 1e-3
    config = short_run(
        AdapterConfig(rank=2), OptimizerConfig(name, rate, schedule="cosine"), steps=5
    )
    try:
        whole, losses = run(config, tmp_path / "whole")
    except LoraError as error:
        assert "This optimizer needs" in error.headline
        pytest.skip(error.headline)
    run(config, tmp_path / "parts", watcher=Quiet(stop_after=3))
    parts, again = run(config, tmp_path / "parts")
    start, _ = run(config, tmp_path / "start", watcher=Quiet(stop_after=0))
    assert same(whole, parts)
    assert losses == again
    assert not same(whole, start)


def test_a_killed_run_goes_on_with_the_same_bits_twice(tmp_path):
    """Kill -9 in the midst of a step; the last state on disk is where it goes on."""
    config = short_run(**{**EVERYTHING, "steps": 12})
    config = type(config)(**{**vars(config), "checkpoint": type(config.checkpoint)(every=2)})
    whole, losses = run(config, tmp_path / "whole")
    for kill_at in (3, 8):
        killed(tmp_path / "parts", kill_at)
    parts, again = run(config, tmp_path / "parts")
    assert same(whole, parts)
    assert losses == again


KILLED = """
import importlib.util, os, signal, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from pathlib import Path
import lora_workbench
from tests.training import runs, test_determinism as own

class Killer(runs.Quiet):
    def stepped(self, progress):
        if progress.step == {kill_at}:
            os.kill(os.getpid(), signal.SIGKILL)

config = runs.short_run(**{{**own.EVERYTHING, "steps": 12}})
config = type(config)(**{{**vars(config), "checkpoint": type(config.checkpoint)(every=2)}})
runs.run(config, Path({folder!r}), watcher=Killer())
"""


def killed(folder, kill_at):
    root = str(Path(__file__).parents[2])
    code = KILLED.format(root=root, folder=str(folder), kill_at=kill_at)
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL


def test_another_run_s_states_are_refused(tmp_path):
    run(short_run(steps=2), tmp_path)
    with pytest.raises(LoraError, match="other settings, pictures or base"):
        run(short_run(steps=2), tmp_path, key="another")


def test_another_number_of_threads_is_told(tmp_path):
    config = short_run(steps=3)
    run(config, tmp_path, watcher=Quiet(stop_after=1))
    torch.set_num_threads(2)
    watcher = Quiet()
    run(config, tmp_path, watcher=watcher)
    assert "began on 1 threads and goes on with 2" in watcher.notes[0]


def test_an_interrupt_while_the_factors_become_their_average_saves_the_factors(
    tmp_path, monkeypatch
):
    config = short_run(**EVERYTHING)
    config = replace(config, validation=ValidationConfig(every=1))
    whole, _ = run(config, tmp_path / "whole")
    copy_to, calls = EMAModel.copy_to, []

    def interrupted(self, parameters):
        calls.append(1)
        copy_to(self, parameters)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EMAModel, "copy_to", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "parts")
    assert len(calls) == 3
    assert same(whole, run(config, tmp_path / "parts")[0])


def test_an_interrupt_while_the_factors_move_keeps_the_state_before(tmp_path, monkeypatch):
    config = short_run(**{**EVERYTHING, "optimizer": OptimizerConfig(rate=1e-3)})
    whole, _ = run(config, tmp_path / "whole")
    step, calls = torch.optim.AdamW.step, []

    def interrupted(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1)  # half of the factors have moved
            raise KeyboardInterrupt
        return step(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "parts")
    found, _ = run(config, tmp_path / "parts")
    assert all(torch.equal(found[name], whole[name]) for name in whole)
