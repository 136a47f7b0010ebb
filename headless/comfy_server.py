"""A ComfyUI of our own: started from its folder, stopped at the end."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..lora_core.errors import LoraError
from .run_errors import RunFailedError

_HOST = "127.0.0.1"
_START_SECONDS = 600.0  # large installs with many packs take minutes
_STOP_SECONDS = 10.0
_TAIL_LINES = 20
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\].*?(?:\x07|\x1b\\)|[@-Z\\^_])")  # colours etc.
# Where people keep the Python of a ComfyUI; the last is the portable build for Windows.
_PYTHONS = (
    "venv/bin/python",
    ".venv/bin/python",
    "venv/Scripts/python.exe",
    ".venv/Scripts/python.exe",
    "../python_embeded/python.exe",
)


@contextmanager
def started_server(folder: Path, arguments: str = "") -> Iterator[str]:
    """Start the ComfyUI in ``folder``, without a browser, on a free port of this machine.

    Args:
        folder: Holds ComfyUI's main.py.
        arguments: More of main.py's own options, as in a shell.

    Yields:
        Its address. On every exit ComfyUI is stopped, with all processes that it started.

    Raises:
        LoraError: the folder holds no ComfyUI.
        RunFailedError: it ended before it answered; the message shows the end of its log.
    """
    _require_comfyui(folder)
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="lora-workbench-run-") as scratch:
        log = Path(scratch, "comfyui.log")
        command = [_python_of(folder), *_options(port, scratch), *shlex.split(arguments)]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours: the run is interrupted, then ComfyUI
            )
        try:
            _wait_until_it_answers(process, port, log)
            yield f"http://{_HOST}:{port}"
        finally:
            _stop(process)


def _require_comfyui(folder: Path) -> None:
    missing = [name for name in ("main.py", "comfy") if not (folder / name).exists()]
    if missing:
        raise LoraError(
            "The folder holds no ComfyUI.",
            {"Folder": folder, "Missing": ", ".join(missing)},
            "give --comfyui the folder with ComfyUI's main.py, or the address of a running one.",
        )


def _python_of(folder: Path) -> str:
    """The Python that ComfyUI was installed with; this one when the folder has none."""
    found = (folder / name for name in _PYTHONS)
    # Not resolved: a virtual environment is known by the path of its link.
    return next((str(path.absolute()) for path in found if path.is_file()), sys.executable)


def _options(port: int, scratch: str) -> list[str]:
    """Keep to ourselves what a ComfyUI that already runs from the same folder also uses."""
    return [
        *("main.py", "--listen", _HOST, "--port", str(port), "--disable-auto-launch"),
        # ComfyUI: it empties its folder for temporary files at its start (0.30.0).
        *("--temp-directory", scratch),
        # ComfyUI: a second process ends at once when the database is locked (0.30.0).
        *("--database-url", "sqlite:///:memory:"),
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait for the port: ComfyUI opens it once every node is loaded."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _not_started(f"it ended with exit code {process.returncode}", log)
        try:
            socket.create_connection((_HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise _not_started(f"no answer within {_START_SECONDS:.0f} s", log)


def _not_started(problem: str, log: Path) -> RunFailedError:
    lines = _ESCAPES.sub("", log.read_text(errors="replace")).splitlines()[-_TAIL_LINES:]
    tail = "\n".join(f"    {line}" for line in lines) or "    (empty)"
    fix = "start ComfyUI by hand once and cure what it says."
    if any("NVIDIA" in line or "CUDA" in line for line in lines):
        fix = "without a graphics card add --comfyui-args=--cpu; else cure what the log says."
    return RunFailedError(
        "ComfyUI did not start.", {"Problem": problem, "End of its log": f"\n{tail}"}, fix
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    _signal_all(process, signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    finally:
        _signal_all(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()


def _signal_all(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to ComfyUI and the processes that it started."""
    if os.name != "posix":
        process.terminate()
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
