"""A host with LoRA files and no models: what nodes that only handle stacks need."""

import os
from pathlib import Path

import pytest
import torch

from lora_workbench.hosts.hash_store import HashStore
from lora_workbench.hosts.lora_files import LoraFiles
from lora_workbench.lora_core.files.write import write_safetensors


class FilesHost:
    """The files part of ``Host``, on one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.loaded = []
        self._files = LoraFiles(
            self.lora_names,
            lambda name: folder / name,
            HashStore(folder.parent / "hashes.sqlite"),
            lambda: [folder],
        )
        self.resolve, self.fingerprint = self._files.resolve, self._files.fingerprint

    def lora_names(self):
        files = self.folder.rglob("*.safetensors")
        return sorted(str(path.relative_to(self.folder)) for path in files)

    def load_lora(self, choice):
        self.loaded.append(choice.name)
        return self._files.load(choice)

    def hooks(self, stack, schedule):
        """What the node asked for."""
        return stack, schedule

    def write(self, name, value=1.0):
        """Write a LoRA of one module; another ``value`` makes another content."""
        path = self.folder.joinpath(*name.split("/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "x.lora_down.weight": torch.full((2, 6), value),
            "x.lora_up.weight": torch.ones(5, 2),
        }
        write_safetensors(path, tensors, overwrite=True)
        return name.replace("/", os.sep)


@pytest.fixture
def host(tmp_path):
    """A host whose LoRA folder is empty."""
    (tmp_path / "loras").mkdir()
    return FilesHost(tmp_path / "loras")
