"""A real ComfyUI in its own process, started by the command's own code."""

import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lora_workbench.headless.comfy_server import started_server

# What a user's main.py is; here it first stands in for torchvision, then runs the real one.
LAUNCHER = """\
import runpy, sys
sys.path.insert(0, {tests!r})
import torchvision_stub
torchvision_stub.install()
sys.path[0] = {root!r}
sys.argv[0] = {root!r} + "/main.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class ComfyServer:
    """A running ComfyUI: its address and its folders."""

    address: str
    base_directory: Path

    @property
    def loras_dir(self) -> Path:
        return self.base_directory / "models" / "loras"

    @property
    def input_dir(self) -> Path:
        return self.base_directory / "input"

    @property
    def output_dir(self) -> Path:
        return self.base_directory / "output"

    def get(self, path: str) -> dict:
        """The JSON that a GET answers."""
        with urllib.request.urlopen(f"{self.address}/{path}") as response:
            return json.load(response)

    def post(self, path: str, body: Mapping) -> None:
        """Send JSON to a route that answers nothing."""
        request = urllib.request.Request(
            f"{self.address}/{path}", json.dumps(body).encode(), method="POST"
        )
        urllib.request.urlopen(request).close()

    def forget(self) -> None:
        """Drop every cached result and every loaded model before the next run."""
        self.post("free", {"unload_models": True, "free_memory": True})


def make_comfyui_folder(folder: Path, root: Path) -> Path:
    """Write a folder that starts the ComfyUI at ``root``; return it."""
    folder.mkdir()
    source = LAUNCHER.format(tests=str(Path(__file__).parent), root=str(root))
    (folder / "main.py").write_text(source)
    (folder / "comfy").symlink_to(root / "comfy")
    return folder


def server_options(base_directory: Path) -> str:
    """Options for a ComfyUI without a graphics card, a frontend or a network."""
    web = base_directory / "web"
    web.mkdir(exist_ok=True)
    (web / "index.html").touch()
    return (
        f"--cpu --base-directory {base_directory} --front-end-root {web} "
        "--disable-api-nodes --cache-classic --max-upload-size 1"
    )


@contextmanager
def running_server(folder: Path, base_directory: Path) -> Iterator[ComfyServer]:
    """A ComfyUI with all its folders below ``base_directory``, stopped at the end."""
    with started_server(folder, server_options(base_directory)) as address:
        yield ComfyServer(address, base_directory)
