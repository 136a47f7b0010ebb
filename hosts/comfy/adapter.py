"""All LoRAs of one weight as a single ComfyUI adapter."""

from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...lora_core.adapters import Adapter
from ...lora_core.models.target import Target
from ...lora_core.patching.fused import FusedUpdate, as_matrix, fuse, row_chunks, write_merged
from ...lora_core.patching.products import cpu_threads
from ...lora_core.stack import StackItem, Term
from .adapter_state import DEPENDENT, kind_and_number, rebuilt


class _Share(NamedTuple):
    """One LoRA's share of a weight, as ``fuse`` reads it."""

    target: Target
    coefficient: float
    adapter: Adapter


class FusedLoraAdapter(WeightAdapterBase):
    """The whole stack's change of one weight, added in float32 in one pass.

    ComfyUI: dynamic patchers rebuild adapters as ``type(a)(a.loaded_keys, moved(a.weights))``
    (read in 0.30), so all state is nested tuples in ``weights``: whether the key carries a function
    of the delta, then per LoRA
    ``(kind, coefficient, number, transposed, tensors, source)``. Coefficients are dimensionless;
    see ``adapter_state`` for the number; a source names the factors (``Term.source``).

    ``items`` is the whole stack that was applied, for lineage; nothing is computed from it, and
    the copies of dynamic patchers have none.
    """

    name = "lora_workbench"
    items: tuple[StackItem, ...] = ()

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    @classmethod
    def of(cls, terms: Iterable[Term], has_function: bool) -> "FusedLoraAdapter":
        """Read the factors of a weight's terms.

        Args:
            terms: In canonical order.
            has_function: Whether the patch key carries a function of the delta.

        Raises:
            LoraError: a factor cannot be read, or holds NaN or infinity.
        """
        keys: set[str] = set()
        weights: list[Any] = [has_function]
        for term in terms:
            adapter = term.lora.adapter(term.module, term.part)
            kind, number = kind_and_number(adapter)
            transposed = term.target.transposed
            weights.append(
                (kind, term.coefficient, number, transposed, adapter.tensors(), term.source)
            )
            keys.update(term.part.keys.values())
        return cls(keys, tuple(weights))

    @property
    def depends_on_base(self) -> bool:
        """Whether what is added depends on the weight it is added to: there is a DoRA or OFT."""
        return any(kind in DEPENDENT for kind, *_ in self.weights[1:])

    @property
    def turns_columns(self) -> bool:
        """Whether there is an OFT of a weight that is stored transposed."""
        return any(kind == "oft" and turned for kind, _, _, turned, *_ in self.weights[1:])

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for adapters that make the same bits of the same weight; reads no tensor."""
        has_function, *shares = self.weights
        return (has_function, *(share[:4] + share[5:] for share in shares))

    def calculate_shape(self, key: str) -> None:
        """The weight keeps its shape."""
        return

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: object,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: object = None,
    ) -> Tensor:
        """Add ``strength`` times the stack's delta to ``weight``, in place.

        ComfyUI: with an offset ``weight`` is a narrowed view and the return value is discarded.
        ``function`` is one of ComfyUI's own where the key carries none.
        """
        update = self.update(weight, strength)
        if self.weights[0]:
            # ComfyUI: its functions swap halves (0.30), so they turn the weight into what a file
            # addresses too.
            base = function(weight) if update.depends_on_base else weight
            update = update.measured(partial(_rows, base), tuple(weight.shape))
            columns = weight.numel() // weight.shape[0]
            delta = update.delta(0, weight.shape[0], columns, as_matrix(base))
            weight += function(delta.reshape(weight.shape)).to(weight.dtype)
        else:
            _add_to(weight, update.measured(partial(_rows, weight), tuple(weight.shape)))
        return weight

    def merged(self, base_weight: Tensor) -> Tensor:
        """``base_weight`` plus the stack's delta in new memory, rounded once to its dtype.

        On a CPU on one thread, so that the number of threads changes no bit. As
        ``calculate_weight`` on a float32 copy, without that copy; not for a key that carries a
        function.
        """
        merged = torch.empty_like(base_weight, memory_format=torch.contiguous_format)
        with cpu_threads(1) if merged.is_cpu else nullcontext():
            shape = tuple(merged.shape)
            update = self.update(base_weight, 1.0).measured(partial(_rows, base_weight), shape)
            for start, stop in row_chunks(shape):
                write_merged(merged, base_weight[start:stop], update, start)
        return merged

    def update(self, weight: Tensor, strength: float) -> FusedUpdate:
        """``strength`` times the stack's delta of a weight, factors on the weight's device.

        Not measured yet: the weight may be no base.
        """
        shape = tuple(weight.shape)
        shares = []
        for kind, coefficient, number, transposed, tensors, _ in self.weights[1:]:
            moved = tuple(tensor.to(weight.device) for tensor in tensors)
            adapter = rebuilt(kind, moved, number)
            target = Target("", shape[::-1] if transposed else shape, "", "", None, transposed)
            shares.append(_Share(target, coefficient * strength, adapter))
        return fuse(shares, shape, lambda share: share.adapter)


def _add_to(weight: Tensor, update: FusedUpdate) -> None:
    """Add the update to a weight, summed in float32."""
    for start, stop in row_chunks(tuple(weight.shape)):
        rows = weight[start:stop]
        matrix = as_matrix(rows)
        if matrix.dtype == torch.float32 and matrix.data_ptr() == rows.data_ptr():
            update.add_to(matrix, start)
        else:
            write_merged(weight, rows, update, start)


def _rows(weight: Tensor, start: int, stop: int) -> Tensor:
    return weight[start:stop]
