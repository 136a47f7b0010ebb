"""The canvas's pure modules, under node's own test runner."""

import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import missing

MODULES = sorted((Path(__file__).parent / "modules").glob("*.test.mjs"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module(path):
    node = shutil.which("node")
    if node is None:
        missing("there is no node on this machine")
    finished = subprocess.run([node, "--test", path], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout
