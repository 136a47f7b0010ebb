"""What does merging into a checkpoint file cost beside reading and writing it? Bar: 2x, 400 MB.

A full-shape SD1.5 checkpoint (fp16, 1.97 GB) and two LoRAs on tmpfs. Each repetition runs, in
processes of their own and after their imports, our merge and the same loop of row chunks with
pread and pwrite alone.

    python benchmarks/merge_file.py [--folder /dev/shm] [--repeat 5]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lora_workbench.headless.sample_files import write_random_checkpoint, write_random_lora
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.lora_core.models import table_from_shapes
from lora_workbench.lora_core.patching.fused import row_chunks
from lora_workbench.lora_core.patching.merge_file import merge_checkpoint
from lora_workbench.lora_core.stack import StackItem, make_plan

TIME_BAR, MEMORY_BAR = 2.0, 400.0


def main() -> int:
    options = _options()
    if options.run:
        measured = {"merge": _merge, "copy": _copy}[options.run](options.folder)
        print(json.dumps(measured))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        write_random_checkpoint(folder / "base.safetensors")
        write_random_lora(folder / "a.safetensors", "kohya", 16, 8.0, seed=1)
        write_random_lora(folder / "b.safetensors", "peft", 32, 32.0, seed=2)
        runs = {"merge": [], "copy": []}
        for _ in range(options.repeat):
            for name, results in runs.items():
                results.append(_in_subprocess(name, folder))
    return _report(runs, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="/dev/shm", type=Path)
    parser.add_argument("--repeat", default=5, type=int)
    parser.add_argument("--run", choices=("merge", "copy"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_subprocess(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--run", name, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    (folder / "out.safetensors").unlink()
    return json.loads(done.stdout)


def _merge(folder: Path) -> dict[str, float]:
    with _measured() as measured:
        checkpoint = open_safetensors(folder / "base.safetensors")
        stack = [
            StackItem(load_lora(folder / "a.safetensors"), 0.8),
            StackItem(load_lora(folder / "b.safetensors"), 0.5),
        ]
        shapes = {key: info.shape for key, info in checkpoint.tensors.items()}
        plan = make_plan(stack, table_from_shapes(shapes))
        changed = merge_checkpoint(checkpoint, plan, folder / "out.safetensors", {})
    return measured | {"changed": len(changed)}


def _copy(folder: Path) -> dict[str, float]:
    file = open_safetensors(folder / "base.safetensors")
    buffer = bytearray(64 << 20)
    with _measured() as measured:
        source = os.open(folder / "base.safetensors", os.O_RDONLY)
        target = os.open(folder / "out.safetensors", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.ftruncate(target, os.fstat(source).st_size)
        for info in file.tensors.values():
            row = info.nbytes // info.shape[0]
            for start, stop in row_chunks(info.shape):
                piece = memoryview(buffer)[: (stop - start) * row]
                position = info.start + start * row
                os.preadv(source, [piece], position)
                os.pwrite(target, piece, position)
        os.fsync(target)
        os.close(target)
    return measured


@contextmanager
def _measured() -> Iterator[dict[str, float]]:
    """Fill in seconds and the highest RssAnon, in MB, of the block."""
    result, done = {"peak": _anonymous_mb()}, threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            result["peak"] = max(result["peak"], _anonymous_mb())

    watcher = threading.Thread(target=sample)
    watcher.start()
    started = time.perf_counter()
    try:
        yield result
    finally:
        result["seconds"] = time.perf_counter() - started
        done.set()
        watcher.join()


def _anonymous_mb() -> float:
    with Path("/proc/self/status").open() as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024 / 1e6


def _report(runs: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> int:
    print(f"{platform.platform()}, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {options.folder}")  # fmt: skip
    best = {name: min(run["seconds"] for run in results) for name, results in runs.items()}
    for name, results in runs.items():
        seconds = ", ".join(f"{run['seconds']:.2f}" for run in results)
        peak = max(run["peak"] for run in results)
        print(f"{name:6} min {best[name]:.2f} s of [{seconds}], RssAnon at most {peak:.0f} MB")
    ratio = best["merge"] / best["copy"]
    peak = max(run["peak"] for run in runs["merge"])
    print(f"{runs['merge'][0]['changed']} tensors changed; merge / copy = {ratio:.2f} "
          f"(bar {TIME_BAR}), memory {peak:.0f} MB (bar {MEMORY_BAR:.0f})")  # fmt: skip
    return int(ratio > TIME_BAR or peak > MEMORY_BAR)


if __name__ == "__main__":
    sys.exit(main())
