"""Gradient checkpointing: blocks that are computed twice, and keep nothing but their input."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..lora_core.errors import LoraError
from .dropout import Draws

_CONTAINERS = (nn.ModuleList, nn.Sequential)


@contextmanager
def checkpointed(part: nn.Module, depth: int, draws: Draws) -> Iterator[None]:
    """Compute blocks of a model twice; afterwards its forwards are as they were.

    Args:
        part: The model.
        depth: 0 changes nothing; see ``blocks_at``.
        draws: What the dropout reads; the second time as the first.

    Raises:
        LoraError: there are no blocks that deep.
    """
    with ExitStack() as restore:
        for block in blocks_at(part, depth) if depth else ():
            had_own = "forward" in vars(block)
            before = block.forward
            block.forward = _twice(before, draws)
            if had_own:
                restore.callback(setattr, block, "forward", before)
            else:
                restore.callback(delattr, block, "forward")
        yield


def blocks_at(part: nn.Module, depth: int) -> Sequence[nn.Module]:
    """The blocks of a model's lists, ``depth`` lists deep; 1 is the outermost.

    Members of lists and sequences that have parts of their own count, those of sequences within
    sequences as one.

    Raises:
        LoraError: there are none.
    """
    found = list(_members(part, depth))
    if not found:
        raise LoraError(
            f"This model has no blocks {depth} lists deep.",
            {"Class": type(part).__name__},
            "take a smaller gradient_checkpointing, or 0.",
        )
    return found


def _members(module: nn.Module, depth: int) -> Iterator[nn.Module]:
    for child in module.children():
        is_member = isinstance(module, _CONTAINERS) and not isinstance(child, _CONTAINERS)
        left = depth - 1 if is_member else depth
        if left == 0 and any(True for _ in child.children()):
            yield child
        elif left > 0:
            yield from _members(child, left)


def _twice(forward: Any, draws: Draws) -> Any:  # noqa: ANN401  a module's forward
    def computed_twice(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        keys = draws.keys

        def run(*inner: Any, **named: Any) -> Any:  # noqa: ANN401
            with draws.of(keys):
                return forward(*inner, **named)

        # Nothing in a model draws global numbers: dropout is ours.
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return computed_twice
