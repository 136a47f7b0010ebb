"""The way to the compiled loops: where they are taken."""

import sys
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LOOPS = "lora_workbench_loops"
"""numba looks up what it compiled by module name, and hosts load this package under any name."""

_NUMBERS = (torch.float32, torch.float16, torch.bfloat16)


@lru_cache(maxsize=1)
def _loops() -> Any:
    spec = spec_from_file_location(_LOOPS, Path(__file__).with_name("loops.py"))
    if spec is None or spec.loader is None:
        return None
    loops = sys.modules[_LOOPS] = module_from_spec(spec)
    try:
        spec.loader.exec_module(loops)
    except (ImportError, RuntimeError):  # no numba, one that refuses this numpy, nowhere to cache
        del sys.modules[_LOOPS]
        return None
    return loops if loops.CONVERTS_HALF else None


def has_loops() -> bool:
    """Whether this process can run the loops: the extra ``[cpu]``, and a processor they are for."""
    return _loops() is not None


def calculating_for(base: Tensor, *others: Tensor) -> Any:
    """``compiled_for`` where the loops can calculate with the dtype of ``base``."""
    return compiled_for(base, *others) if base.dtype in _NUMBERS else None


def compiled_for(*tensors: Tensor) -> Any:
    """The module ``loops`` where it may work on these tensors, else None.

    They must be contiguous on the CPU. Each loop runs on one thread, so it is taken where torch is
    on one thread too: in the threads of a ``Crew``. The bits are those of the torch operations.
    """
    if torch.get_num_threads() != 1:
        return None
    is_plain = all(type(t) is Tensor and t.is_cpu and t.is_contiguous() for t in tensors)
    return _loops() if is_plain else None
