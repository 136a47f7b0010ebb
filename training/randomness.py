"""Seeds by purpose, so that a step needs nothing of the steps before it."""

import hashlib

import torch

_BITS = 63  # what torch takes


def seed_of(seed: int, *purpose: str | int) -> int:
    """A seed of its own for one purpose.

    Args:
        seed: The user's.
        purpose: What it is for, such as ``"noise", step, index``; types and order count.

    Returns:
        0 to 2^63 - 1.
    """
    told = "\0".join(f"{type(part).__name__}:{part}" for part in (seed, *purpose))
    digest = hashlib.sha256(told.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - _BITS)


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator on the CPU, whose numbers are the same wherever the model is."""
    return torch.Generator().manual_seed(seed_of(seed, *purpose))
