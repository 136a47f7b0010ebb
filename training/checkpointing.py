"""Gradient checkpointing: blocks that are computed twice, and keep nothing but their input."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
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

    Members of lists and sequences count, those of sequences within sequences as one. Where the
    lists are less deep, it is their innermost members. A member with a single layer is no block:
    what it would compute twice is kept anyway.

    Args:
        part: Before factors are put into it, which are layers too.
        depth: 1 or more.

    Raises:
        LoraError: no list is that deep.
    """
    found = list(_members(part, depth, 0))
    if depth not in {level for _, level in found}:
        raise LoraError(
            f"This model has no blocks {depth} lists deep.",
            {"Class": type(part).__name__},
            "take a smaller gradient_checkpointing, or 0.",
        )
    return [block for block, _ in found]


def _members(module: nn.Module, depth: int, level: int) -> Iterator[tuple[nn.Module, int]]:
    """The innermost blocks, at most ``depth`` lists deep, and how deep they are."""
    for child in module.children():
        is_member = isinstance(module, _CONTAINERS) and not isinstance(child, _CONTAINERS)
        is_block = is_member and _has_layers(child)
        inside = level + is_block
        inner = list(_members(child, depth, inside)) if inside < depth else []
        if is_block and not inner:
            yield child, inside
        yield from inner


def _has_layers(module: nn.Module) -> bool:
    """Whether more than one part has parameters of its own."""
    layers = (part for part in module.modules() if any(True for _ in part.parameters(False)))
    return sum(1 for _ in layers) > 1


def _twice(forward: Any, draws: Draws) -> Any:  # noqa: ANN401  a module's forward
    def computed_twice(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        keys = draws.keys
        leaves, structure = tree_flatten((args, kwargs))  # autograd keeps tensors it is given bare

        def run(*inner: Any) -> Any:  # noqa: ANN401
            inner_args, inner_kwargs = tree_unflatten(list(inner), structure)
            with draws.of(keys):
                return forward(*inner_args, **inner_kwargs)

        # Nothing in a model draws global numbers: dropout is ours.
        return checkpoint(run, *leaves, use_reentrant=False, preserve_rng_state=False)

    return computed_twice
