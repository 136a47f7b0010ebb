"""The methods of training: which library has them, and the numbers that each one trains."""

import importlib.util
import math
from collections.abc import Mapping
from types import MappingProxyType

import torch

from ..lora_core.errors import LoraError
from .config import AdapterConfig

LYCORIS: Mapping[str, str] = MappingProxyType({"loha": "loha", "lokr": "lokr", "oft": "diag-oft"})
"""The methods of LyCORIS, by the name that it has for them."""

_DTYPES = MappingProxyType({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16})
_EXACT = ("magnitude", "rescale")


def require_library(method: str) -> None:
    """Refuse a method whose library is missing.

    Raises:
        LoraError: names the extra that brings it.
    """
    if method in LYCORIS and importlib.util.find_spec("lycoris") is None:
        raise LoraError(
            f"adapter.method = {method!r} needs a library that is not installed.",
            {"Missing": "lycoris-lora"},
            "pip install 'comfyui-lora-workbench[lycoris]'",
        )


def idle_fields(method: str, full_matrix: bool) -> dict[str, str]:
    """The fields of ``AdapterConfig`` that say nothing to a method, and what would make them act.

    Args:
        method: Of the run.
        full_matrix: Of the run; of LoKr alone.
    """
    found: dict[str, str] = {}
    if method in LYCORIS:
        found |= dict.fromkeys(("rslora", "start"), 'adapter.method = "lora" or "dora"')
    if method != "lokr":
        names = ("factor", "decompose_both", "full_matrix")
        found |= dict.fromkeys(names, 'adapter.method = "lokr"')
    if method != "loha":
        found["tucker"] = 'adapter.method = "loha"'  # ComfyUI 0.30 leaves such a LoKr out
    if method == "oft":
        found |= dict.fromkeys(("alpha", "dropout"), "another adapter.method")
    else:
        found |= dict.fromkeys(("constraint", "rescale"), 'adapter.method = "oft"')
    if method == "lokr" and full_matrix:
        names = ("rank", "alpha", "decompose_both")
        found |= dict.fromkeys(names, "adapter.full_matrix = false")
    return found


def stored_dtype(role: str, dtype: str) -> torch.dtype:
    """In what dtype a file holds the factors of one role.

    Norms and gains lie near the weight's own, so that a rounded one would change all of it. OFT's
    turns begin at 0, and fp16 cuts off what is below 6e-5.

    Args:
        role: A key of ``Factors.parameters``.
        dtype: Of the file: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
    """
    is_exact = role in _EXACT or (role == "oft_blocks" and dtype == "fp16")
    return torch.float32 if is_exact else _DTYPES[dtype]


def role_sizes(shape: tuple[int, ...], rank: int, config: AdapterConfig) -> dict[str, int]:
    """How many numbers of each role a weight's factors have.

    Args:
        shape: Of the weight, ``(out, in, *kernel)``.
        rank: Of its factors.
        config: The run's.
    """
    out, inside, *kernel = shape
    places = math.prod(kernel)
    if config.method == "loha":
        return _loha(out, inside, places, rank, config.tucker and places > 1)
    if config.method == "lokr":
        return _lokr(out, inside, places, rank, config)
    if config.method == "oft":
        size, blocks = oft_blocks(out, rank)
        return {"oft_blocks": blocks * size**2, **({"rescale": out} if config.rescale else {})}
    magnitude = {"magnitude": out} if config.method == "dora" else {}
    return {"down": rank * inside * places, "up": out * rank, **magnitude}


def oft_blocks(outputs: int, rank: int) -> tuple[int, int]:
    """How many outputs OFT turns together, and how many such blocks there are, at least as many."""
    return _two_factors(outputs, rank)


def file_bytes(sizes: Mapping[str, int], dtype: str) -> int:
    """Of the factors of ``role_sizes`` in a file, with their alpha."""
    return 4 + sum(count * stored_dtype(role, dtype).itemsize for role, count in sizes.items())


def _loha(out: int, inside: int, places: int, rank: int, has_core: bool) -> dict[str, int]:
    columns = inside if has_core else inside * places
    sizes: dict[str, int] = {}
    for n in (1, 2):
        sizes |= {f"hada_w{n}_a": out * rank, f"hada_w{n}_b": rank * columns}
        if has_core:
            sizes[f"hada_t{n}"] = rank**2 * places
    return sizes


def _lokr(out: int, inside: int, places: int, rank: int, config: AdapterConfig) -> dict[str, int]:
    (o1, o2), (i1, i2) = (_two_factors(side, config.factor) for side in (out, inside))
    sizes: dict[str, int] = {}
    if config.decompose_both and rank < max(o1, i1) / 2 and not config.full_matrix:
        sizes |= {"lokr_w1_a": o1 * rank, "lokr_w1_b": rank * i1}
    else:
        sizes["lokr_w1"] = o1 * i1
    if rank >= max(o2, i2) / 2 or config.full_matrix:
        sizes["lokr_w2"] = o2 * i2 * places
    else:
        sizes |= {"lokr_w2_a": o2 * rank, "lokr_w2_b": rank * i2 * places}
    return sizes


def _two_factors(number: int, wish: int) -> tuple[int, int]:
    """As LyCORIS splits a side of a weight: the smaller one first, at most ``wish`` if it can."""
    from lycoris.functional import factorization

    return factorization(number, wish)
