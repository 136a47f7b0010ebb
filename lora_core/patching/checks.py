"""What a model's weights must be before a plan is written into them."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import LoraError
from .fused import MERGEABLE_DTYPES

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALED_FP8_MARKS = ("scale_weight", "weight_scale", "comfy_quant")


def find_weight(key: str, weights: Mapping[str, Tensor]) -> Tensor:
    """The live tensor of a storage, without its autograd history.

    Raises:
        LoraError: the model has no such weight.
    """
    weight = weights.get(key)
    if weight is None:
        raise LoraError(
            f"The model has no weight {key}.",
            {"Weights": len(weights)},
            "plan the stack with the table of this model.",
        )
    return weight.detach()


def check_mergeable(key: str, dtype: torch.dtype, names: Iterable[str]) -> None:
    """Refuse weights whose stored numbers are not their values, or that no merge can round to.

    Args:
        key: The storage.
        dtype: Its dtype.
        names: Every tensor name of the model; a scale beside the storage is looked for here.

    Raises:
        LoraError: the dtype is not fp32, fp16, bf16 or plain fp8, or the weight is scaled fp8.
    """
    if dtype not in MERGEABLE_DTYPES:
        raise LoraError(
            f"{key}: a LoRA cannot be merged into {dtype}.",
            {"Mergeable": ", ".join(str(known) for known in MERGEABLE_DTYPES)},
            "load the model in one of these, or apply the LoRA unmerged.",
        )
    if dtype in _FP8:
        stem = key.removesuffix("weight")
        marks = (*(stem + mark for mark in _SCALED_FP8_MARKS), "scaled_fp8")
        found = next((mark for mark in marks if mark in names), None)
        if found is not None:
            raise LoraError(
                f"{key}: merging into scaled fp8 weights is not supported yet.",
                {"Found": found},
                "use the fp16 or bf16 checkpoint of this model.",
            )


def refuse_shared_memory(weights: Mapping[str, Tensor]) -> None:
    """Raise when two storages overlap in memory: each would be changed twice.

    Raises:
        LoraError: names the two weights.
    """
    spans = sorted((str(weight.device), *_span(weight), key) for key, weight in weights.items())
    for (device, _, stop, first), (other, start, _, second) in pairwise(spans):
        if device == other and start < stop:
            raise LoraError(
                "Two weights of the model share memory.",
                {"First": first, "Second": second},
                "leave one of them out of the LoRA with a weighting rule.",
            )


def _span(weight: Tensor) -> tuple[int, int]:
    """First and last address, bytes; a strided view counts with its gaps."""
    steps = zip(weight.shape, weight.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return weight.data_ptr(), weight.data_ptr() + (last + 1) * weight.element_size()


def refuse_moved(key: str, merged: Tensor, now: Tensor) -> None:
    """Raise when a merged weight no longer is the tensor that was merged into.

    Raises:
        LoraError: the model was moved, cast, or given other weights meanwhile.
    """
    if (now.data_ptr(), now.dtype, now.device) != (merged.data_ptr(), merged.dtype, merged.device):
        raise LoraError(
            f"{key} was moved or replaced while a LoRA was merged into it.",
            {
                "Merged": f"{merged.dtype} on {merged.device}",
                "Now": f"{now.dtype} on {now.device}",
            },
            "load the model again; un-merge before a model is moved, cast or loaded anew.",
        )
