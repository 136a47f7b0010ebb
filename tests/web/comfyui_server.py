"""A real ComfyUI with our pack in a process of its own; for the tests and for benchmarks/web.py."""

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..comfy.comfy_source import REPOSITORY, comfyui_path

PACK = "ComfyUI-LoRA-Workbench"
SECONDS_TO_START = 240  # 20 on an idle machine


class ServerUnavailableError(Exception):
    """The frontend is not installed."""


@dataclass(frozen=True)
class Server:
    """A running ComfyUI; ``seconds`` are those from its start to its first GET /object_info."""

    url: str
    object_info: dict
    loras: Path
    checkpoints: Path
    seconds: float


def make_base(base: Path, with_pack: bool = True) -> Path:
    """Make ComfyUI's base directory with empty model folders; return its LoRA folder."""
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"Comfy.TutorialCompleted": true}')  # no dialog of templates
    (base / "custom_nodes").mkdir()
    if with_pack:
        (base / "custom_nodes" / PACK).symlink_to(REPOSITORY)
    for folder in ("loras", "checkpoints"):
        (base / "models" / folder).mkdir(parents=True)
    return base / "models" / "loras"


@contextmanager
def running(base: Path) -> Iterator[Server]:
    """Start ComfyUI in a base directory of ``make_base``; stop it at the end.

    Raises:
        ComfyUnavailableError: there is no ComfyUI.
        ServerUnavailableError: there is no frontend.
        RuntimeError: ComfyUI did not start.
    """
    frontend = importlib.util.find_spec("comfyui_frontend_package")
    if frontend is None:
        raise ServerUnavailableError(
            "comfyui-frontend-package is not installed: see tests/web/requirements.txt"
        )
    static = Path(frontend.origin).parent / "static"
    url, port = "http://127.0.0.1:", free_port()
    script = Path(__file__).parent / "run_comfyui.py"
    command = [sys.executable, script, comfyui_path(), static, base, port]
    log = base / "server.log"
    with log.open("wb") as output:
        start = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
    try:
        info = wait_for_nodes(process, f"{url}{port}", log)
        seconds = time.monotonic() - start
        models = base / "models"
        yield Server(f"{url}{port}", info, models / "loras", models / "checkpoints", seconds)
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_nodes(process: subprocess.Popen, url: str, log: Path) -> dict:
    """Return the answer of GET /object_info once the server gives one."""
    end = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/object_info", timeout=60) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            time.sleep(0.05)
    raise RuntimeError(f"ComfyUI did not start.\n{log.read_text()[-3000:]}")
