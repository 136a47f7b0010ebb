"""Folders of small pictures; one thread, on which small models are quickest and keep bits."""

from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image

from lora_workbench.training.dataset.scan import scan
from lora_workbench.training.dataset.settings import DatasetSettings


@pytest.fixture(autouse=True)
def _one_thread():
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


def noise(size, seed=0, channels=3):
    """A picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels)


class Folder:
    """A folder of pictures that tests fill and scan."""

    def __init__(self, path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def add(self, name, size=(64, 64), caption=None, image=None, **save):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (image or noise(size, seed=crc32(name.encode()))).save(path, **save)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    def fill(self, count, size=(64, 64)):
        for number in range(count):
            image = noise(size, seed=1000 + number)
            self.add(f"{number:03d}.png", image=image, caption=f"picture {number}")
        return self

    def settings(self, **options):
        return DatasetSettings(str(self.path), **{"resolution": 64, "bucket_step": 8, **options})

    def scan(self, **options):
        return scan(self.settings(**options))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "pictures")


@pytest.fixture
def other_folder(tmp_path):
    return lambda name: Folder(tmp_path / name)


def kinds(dataset):
    """Kind of each problem to its names."""
    return {p.kind: [name for name, _ in p.items] for p in dataset.problems}
