"""Fixtures shared by all tiers."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real files, key lists and published workflows beside the repository."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here: no real files, key lists, published workflows")
    return folder


@pytest.fixture
def generator():
    """The only source of random numbers."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def threads():
    """Sets torch's threads until the test ends."""
    found = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(found)
