"""Timing in one process: sides interleaved, min against min, spread printed."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

REPETITIONS = 15


class Timings:
    """Seconds of each named step, repetition by repetition."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def run(self, name: str, step: Callable[[], object]) -> None:
        """Time one call of ``step``."""
        start = time.perf_counter()
        step()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)

    def best(self, name: str) -> float:
        """Smallest time in seconds."""
        return min(self.seconds[name])

    def spread(self, name: str) -> str:
        """Min, median and max in milliseconds."""
        values = [second * 1e3 for second in self.seconds[name]]
        return f"{min(values):.0f}/{statistics.median(values):.0f}/{max(values):.0f}"


def interleaved(steps: Mapping[str, Callable[[], object]], repetitions: int) -> Timings:
    """Run all steps in turn, again and again, so that a slow moment hits every side."""
    timings = Timings()
    for _ in range(repetitions):
        for name, step in steps.items():
            timings.run(name, step)
    return timings


def keep_memory() -> None:
    """Start the program again with a glibc that gives no memory back to the system."""
    settings = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    settings["MALLOC_ARENA_MAX"] = "1"  # threads too take from what was freed
    if platform.libc_ver()[0] == "glibc" and os.environ.get("MALLOC_MMAP_MAX_") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)


def machine() -> str:
    """Processor, threads and versions, for the head of a table."""
    model = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            model = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return (
        f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
