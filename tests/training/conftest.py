"""Small models are quickest on one thread, and bits do not depend on the machine's load."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)
