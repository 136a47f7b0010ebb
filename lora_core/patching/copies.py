"""Patched weights as new tensors; the model is not touched."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..adapters import Adapter
from ..stack import Plan, Term, Terms
from .checks import check_mergeable, find_weight
from .fused import fuse, row_chunks, write_merged
from .products import cpu_threads, exact_products


def patched_tensors(plan: Plan, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Merge a plan into copies, one storage at a time.

    The bits are those that ``MergeLedger`` writes on the same device with undo ``full`` or
    ``file``. Factors are read when their storage is reached and dropped after it.

    Args:
        plan: What to merge.
        weights: Name to tensor, as in the model's state dict; only read.

    Returns:
        Storage name and new tensor of each storage the plan changes, on the weight's device, in
        its dtype and layout.

    Raises:
        LoraError: a weight is missing or its dtype cannot carry a merge (at once), or a factor
            cannot be read (when its storage is reached).
    """
    for key in plan.terms:
        check_mergeable(key, find_weight(key, weights).dtype, weights)
    return ((key, _patched(find_weight(key, weights), terms)) for key, terms in plan.terms.items())


def _patched(weight: Tensor, terms: Terms) -> Tensor:
    def adapter_of(term: Term) -> Adapter:
        return term.lora.adapter(term.module, term.part).to(weight.device)

    shape = tuple(weight.shape)
    threads = 1 if weight.is_cpu else torch.get_num_threads()  # as in the ledger's crew
    with torch.no_grad(), exact_products(), cpu_threads(threads):
        update = fuse(terms, shape, adapter_of)
        update = update.measured(lambda start, stop: weight[start:stop], shape)
        patched = torch.empty_like(weight)
        for start, stop in row_chunks(shape):
            write_merged(patched, weight[start:stop], update, start)
    return patched
