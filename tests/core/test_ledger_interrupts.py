"""Random cycles with KeyboardInterrupt between any two lines: the base always comes back."""

import os
import random
import sys
from pathlib import Path

import pytest
import torch

import lora_workbench.lora_core as core
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.patching import fused
from lora_workbench.lora_core.patching.base_file import base_files
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.stack import EMPTY_PLAN

from .kind_cases import toy_kinds
from .toy_model import (
    CHUNK_ELEMENTS,
    bits,
    normal,
    toy_dora,
    toy_lora,
    toy_loras,
    toy_plan,
    toy_weights,
)

CYCLES = int(os.environ.get("LORA_WORKBENCH_CYCLES", "1000"))
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}
OWN_FILES = str(Path(core.__file__).parent)
LONGEST = {"line": 3400, "opcode": 26_000}  # a change of every storage with undo residual


class Interrupter:
    """Raises KeyboardInterrupt before the ``count``-th line (or bytecode) of our own files."""

    def __init__(self):
        self.left = None
        self.unit = "line"
        self.fired = 0

    def arm(self, count, unit):
        self.left, self.unit = count, unit
        sys.settrace(self)

    def disarm(self):
        sys.settrace(None)
        self.left = None

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(OWN_FILES):
            return None
        if self.unit == "opcode":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == self.unit:
            self.left -= 1
            if self.left < 0:
                self.fired += 1  # Python stops tracing when the tracer raises
                raise KeyboardInterrupt
        return self


class TwiceInterrupted(MergeLedger):
    """Is interrupted again on the way back, once for every ``second``."""

    def __init__(self, *args):
        super().__init__(*args)
        self.second = None

    def _recover(self):
        if self.second is not None and sys.gettrace() is None:
            second, self.second = self.second, None
            second()
        super()._recover()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", CHUNK_ELEMENTS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_plans(generator, count=20):
    """Plans that differ in a strength, by a LoRA more or less, or in everything; empty ones too."""
    draw = random.Random(0)
    loras = (*toy_loras(generator), toy_dora("dora", generator), toy_kinds("kinds", generator))
    plans = [EMPTY_PLAN]
    for _ in range(count):
        chosen = draw.sample(loras, draw.randint(1, len(loras)))
        plans.append(toy_plan(*((lora, draw.choice([-1.5, 0.3, 0.8, 1.0])) for lora in chosen)))
    return plans


# An interrupt between opening a file and the start of its `with` leaves it to the collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rung", ["full", "file", "residual"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_an_interrupt_leaves_the_state_before_or_after_and_the_base_comes_back(
    dtype, rung, generator, tmp_path
):
    weights, flat = toy_weights(generator, dtype)
    flat = flat.view(torch.uint8)
    write_safetensors(tmp_path / "base.safetensors", weights)
    files = base_files(open_safetensors(tmp_path / "base.safetensors"))
    arguments = (weights, rung, files if rung == "file" else None)
    base, plans = flat.clone(), random_plans(generator)
    states = []
    for plan in plans:
        MergeLedger(*arguments).apply(plan)
        states.append(flat.clone())
        flat.copy_(base)
    ledger, interrupter, draw = TwiceInterrupted(*arguments), Interrupter(), random.Random(1)

    def again():
        interrupter.arm(draw.randrange(LONGEST["line"] // 2), "line")

    here, hurt = 0, {"once": 0, "twice": 0, "after": 0}
    for _ in range(CYCLES):
        there = draw.choice([0, *range(len(plans))])
        unit = draw.choice([*["line"] * 7, "opcode"])
        before = interrupter.fired
        ledger.second = again if draw.random() < 0.4 else None
        interrupter.arm(draw.randrange(LONGEST[unit]), unit)
        try:
            ledger.apply(plans[there])
            interrupter.disarm()
            reached = {there}
        except KeyboardInterrupt:
            interrupter.disarm()
            reached = {here, there}
            hurt["once"] += 1
        ledger.second = None
        if interrupter.fired - before > 1:
            hurt["twice"] += 1
            ledger.recover()
        found = [index for index in reached if torch.equal(flat, states[index])]
        assert found, f"{plans.index(plans[here])} -> {there}: neither the state before nor after"
        matching = [i for i in found if _same_terms(ledger.applied, plans[i].terms)]
        assert matching
        hurt["after"] += len(reached) == 2 and matching[0] == there != here
        here = matching[0]
    assert hurt["once"] > CYCLES // 4
    assert hurt["twice"] > CYCLES // 50

    ledger.unmerge()
    assert torch.equal(flat, base)
    assert (ledger.applied, ledger.rungs(), ledger.nbytes()) == ({}, {}, 0)


TRANSITIONS = {"merge": (0, 1), "change": (1, 2), "un-merge": (2, 0)}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("unit", "step"), [("line", 1), ("opcode", 7)], ids=["lines", "bytecodes"])
@pytest.mark.parametrize(("start", "goal"), TRANSITIONS.values(), ids=TRANSITIONS)
@pytest.mark.parametrize("rung", ["full", "file", "residual"])
@pytest.mark.parametrize("kind", ["lora", "dora", "kinds"])
def test_every_place_in_a_small_call_can_be_interrupted(
    kind, rung, start, goal, unit, step, generator, tmp_path
):
    """One fused storage of two row chunks and three views."""
    base = normal((9, 4), generator, 0.5, torch.float16)
    weights = {"qkv.weight": base.clone()}
    write_safetensors(tmp_path / "base.safetensors", weights)
    files = base_files(open_safetensors(tmp_path / "base.safetensors"))
    first, second = (
        toy_lora(name, ranks, generator, extras=False)
        for name, ranks in (("a", {"q": 1, "k": 2}), ("b", {"v": 2}))
    )
    if kind == "dora":
        second = toy_dora("b", generator, modules=("q", "v"))
    elif kind == "kinds":
        second = toy_kinds("b", generator, modules=("q", "v"))
    plans = [EMPTY_PLAN, toy_plan((first, 1.0)), toy_plan((first, 0.5), (second, 1.0))]
    ledger = MergeLedger(weights, rung, files)
    states = []
    for plan in plans:
        ledger.apply(plan)
        states.append(bits(weights["qkv.weight"]))
    interrupter, place, finished = Interrupter(), 0, False
    while not finished:
        ledger.apply(plans[start])
        interrupter.arm(place, unit)
        try:
            ledger.apply(plans[goal])
            finished = True
        except KeyboardInterrupt:
            place += step
        interrupter.disarm()
        reached = goal if _same_terms(ledger.applied, plans[goal].terms) else start
        assert torch.equal(bits(weights["qkv.weight"]), states[reached])
        ledger.unmerge()
        assert torch.equal(bits(weights["qkv.weight"]), states[0])
    assert place > 100


def _same_terms(left, right):
    def plain(terms):
        return {k: [(t.source, t.coefficient) for t in ts] for k, ts in terms.items()}

    return plain(left) == plain(right)
