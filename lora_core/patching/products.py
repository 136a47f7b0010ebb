"""Float32 products in float32, whatever precision the host works in."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
_BACKENDS: tuple[Any, ...] = tuple(
    backend.matmul
    for backend in (torch.backends.cuda, torch.backends.mkldnn)
    if hasattr(getattr(backend, "matmul", None), "fp32_precision")
)
"""From torch 2.9 on each backend has a precision of its own beside the older, global one."""


@contextmanager
def exact_products() -> Iterator[None]:
    """Run the block without TF32, bfloat16 products and autocast, then put the settings back.

    They would make a delta wrong by 1e-3 of its size, and autocast changes its dtype.
    """
    overall, backends = _precision(), tuple(backend.fp32_precision for backend in _BACKENDS)
    is_exact = overall in (None, "highest") and not {"tf32", "bf16"} & set(backends)
    try:
        if not is_exact:
            _set_precision(overall and "highest", ("ieee",) * len(_BACKENDS))
        with ExitStack() as stack:
            for device in filter(torch.amp.is_autocast_available, _AUTOCAST):
                stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        if not is_exact:
            _set_precision(overall, backends)


def _precision() -> str | None:
    """The global setting; None where torch refuses to tell, for a backend was set alone."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set_precision(overall: str | None, backends: tuple[str, ...]) -> None:
    if overall is not None:
        torch.set_float32_matmul_precision(overall)
    for backend, precision in zip(_BACKENDS, backends, strict=True):
        backend.fp32_precision = precision


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run the block with ``count`` threads per operation, then put the former number back.

    The number of threads may change the order in which a product is summed, so its last bits.
    """
    found = torch.get_num_threads()
    try:
        if count != found:
            torch.set_num_threads(count)
        yield
    finally:
        if count != found:
            torch.set_num_threads(found)
