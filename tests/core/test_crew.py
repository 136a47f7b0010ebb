"""Several threads, one storage each: failures and interrupts leave nothing running."""

import random
import threading
import time

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.patching import fused, kernels
from lora_workbench.lora_core.patching.base_file import base_files
from lora_workbench.lora_core.patching.copies import patched_tensors
from lora_workbench.lora_core.patching.crew import Crew
from lora_workbench.lora_core.patching.fused import FusedUpdate
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.stack import StackItem, make_plan

from .test_ledger_interrupts import Interrupter, random_plans
from .toy_model import (
    CHUNK_ELEMENTS,
    Table,
    all_bits,
    bits,
    normal,
    one_weight_table,
    same_bits,
    thin_tensors,
    toy_loras,
    toy_plan,
    toy_weights,
)


@pytest.mark.parametrize("count", [1, 3])
def test_every_task_runs_once_with_torch_on_one_thread(count, threads):
    threads(count)
    seen = []
    Crew().run([lambda i=i: seen.append((i, torch.get_num_threads())) for i in range(50)])
    assert sorted(seen) == [(i, 1) for i in range(50)]
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("loops", ["compiled loops", "torch"])
def test_the_number_of_threads_changes_no_bit(loops, threads, generator, monkeypatch):
    """Nor does what else is changed together with a storage."""
    if loops == "torch":
        monkeypatch.setattr(kernels, "_loops", lambda: None)
    weights = {"a": normal((5, 36), generator), "b": normal((64, 320), generator)}
    targets = one_weight_table("a", (5, 36)).targets | one_weight_table("b", (64, 320)).targets
    loras = {
        name: lora_from_tensors(name, thin_tensors(name, tuple(weight.shape), 8, generator))
        for name, weight in weights.items()
    }
    base, written = all_bits(weights), []

    def plan(*names):
        return make_plan([StackItem(loras[name]) for name in names], Table(targets))

    for count, steps in ((1, ["ab"]), (2, ["ab"]), (3, ["ab"]), (2, ["a", "ab"]), (3, ["b", "ab"])):
        threads(count)
        ledger = MergeLedger(weights, "full")
        for names in steps:
            ledger.apply(plan(*names))
        written.append(all_bits(weights))
        ledger.unmerge()
        assert same_bits(all_bits(weights), base)
        written.append({key: bits(copy) for key, copy in patched_tensors(plan("a", "b"), weights)})
    assert all(same_bits(written[0], other) for other in written)


@pytest.mark.parametrize("thread", ["the caller's", "a helper's"])
def test_a_failure_ends_the_run_after_what_has_begun(thread, threads):
    threads(2)
    crew, both, running = Crew(), threading.Barrier(2, timeout=20), []
    main = threading.current_thread()

    def task():
        both.wait()
        if (threading.current_thread() is main) == (thread == "the caller's"):
            raise LoraError("x")
        running.append("begun")
        time.sleep(0.05)
        running.append("ended")

    with pytest.raises(LoraError):
        crew.run([task, task, *[lambda: running.append("more")] * 100])
    assert running.count("begun") == running.count("ended") == 1
    assert "more" not in running[running.index("ended") :]


@pytest.fixture
def two_threads(monkeypatch, threads):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", CHUNK_ELEMENTS)
    threads(2)


@pytest.mark.usefixtures("two_threads")
def test_a_failure_in_a_helper_brings_the_model_back(generator, monkeypatch):
    weights, _ = toy_weights(generator, torch.float16)
    a, b, *_ = toy_loras(generator)
    ledger = MergeLedger(weights, "full")
    ledger.apply(toy_plan((a, 1.0)))
    before, delta, main = all_bits(weights), FusedUpdate.delta, threading.current_thread()

    def failing(self, *args):
        if threading.current_thread() is not main and not failed.is_set():
            failed.set()
            raise MemoryError("no memory")  # a LoraError would be a base file that is gone
        assert failed.wait(20)
        return delta(self, *args)

    failed = threading.Event()
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(FusedUpdate, "delta", failing)
        ledger.apply(toy_plan((a, 0.5), (b, 1.0)))
    assert same_bits(all_bits(weights), before)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("rung", ["full", "file", "residual"])
def test_an_interrupt_beside_a_helper_leaves_the_state_before_or_after(rung, generator, tmp_path):
    weights, flat = toy_weights(generator, torch.float16)
    write_safetensors(tmp_path / "base.safetensors", weights)
    files = base_files(open_safetensors(tmp_path / "base.safetensors"))
    base, plans, states = flat.clone(), random_plans(generator, 6), []
    for plan in plans:
        MergeLedger(weights, rung, files).apply(plan)
        states.append(flat.clone())
        flat.copy_(base)
    ledger, interrupter, draw = MergeLedger(weights, rung, files), Interrupter(), random.Random(2)
    here, hurt = 0, 0
    for _ in range(120):
        there = draw.randrange(len(plans))
        interrupter.arm(draw.randrange(1500), "line")
        try:
            ledger.apply(plans[there])
            interrupter.disarm()
            reached = [there]
        except KeyboardInterrupt:
            interrupter.disarm()
            reached, hurt = [here, there], hurt + 1
        now = flat.clone()
        time.sleep(0.0005)  # a helper that was left running would write now
        assert torch.equal(flat.view(torch.uint8), now.view(torch.uint8))
        here = next(
            i for i in reached if torch.equal(now.view(torch.uint8), states[i].view(torch.uint8))
        )
    assert hurt > 30
    ledger.unmerge()
    assert torch.equal(flat.view(torch.uint8), base.view(torch.uint8))
