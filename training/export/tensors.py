"""The tensors of a file, and what its header says of their scales."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ...lora_core.errors import LoraError, UnknownChoiceError
from ...lora_core.formats.peft_config import HEADER_KEY
from ..config import Form
from .names import ExportTable, ModuleNames
from .trained import Trained, TrainedModule

_Some = TypeVar("_Some", bound=Trained)

FORMS = ("kohya", "peft", "diffusers")
DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def named_modules(
    modules: Sequence[_Some], table: ExportTable, form: Form = "kohya"
) -> dict[str, _Some]:
    """The modules by their name in a file, without the suffix of a tensor.

    Raises:
        UnknownChoiceError: no form of this name.
        LoraError: a form cannot name a module, two modules have one name, or there is none.
    """
    if form not in FORMS:
        raise UnknownChoiceError("form", form, FORMS)
    names = ModuleNames(table)
    namer = {"kohya": names.kohya, "peft": names.peft, "diffusers": names.diffusers}[form]
    named = {namer(module.target): module for module in modules}
    if len(named) < len(modules) or not modules:
        raise LoraError(
            "There is nothing to export." if not modules else "Two modules have one name.",
            {"Modules": len(modules), "Names": len(named)},
            "give each trained weight once.",
        )
    return named


def exported_tensors(
    named: Mapping[str, Trained], form: Form = "kohya", dtype: str = "fp16"
) -> dict[str, Tensor]:
    """The tensors of a file in memory; in kohya's names they are core's ``LORA_MODEL``.

    Args:
        named: What ``named_modules`` gave for the same form.
        form: ``"kohya"`` has an ``alpha`` beside each pair, ``scale * rank`` in float32, the same
            for all of a component: diffusers (0.42) applies the most frequent alpha of a file to
            every attention module. Where alphas differ, ``up`` takes the difference. The other
            forms have their alphas in ``lora_config``.
        dtype: Of the factors; see ``stored_dtype``. Alphas are float32.

    Raises:
        UnknownChoiceError: no form or dtype of this name.
    """
    if dtype not in DTYPES:
        raise UnknownChoiceError("dtype", dtype, DTYPES)
    alphas = component_alphas(named.values())
    return {
        f"{name}.{suffix}": tensor
        for name, module in named.items()
        for suffix, tensor in module.stored(form, dtype, alphas[module.target.component]).items()
    }


def component_alphas(modules: Iterable[Trained]) -> dict[str, float]:
    """The alpha that all modules of a component have in a file of kohya's form: the most frequent.

    Args:
        modules: All of the file.
    """
    alphas: dict[str, list[float]] = {}
    for module in modules:
        alphas.setdefault(module.target.component, []).append(module.alpha)
    return {component: _most_frequent(values) for component, values in alphas.items()}


def adapter_header(named: Mapping[str, TrainedModule]) -> dict[str, str]:
    """What diffusers writes into a file's header: a config for each component, in one JSON text.

    Args:
        named: The modules by the names of the form ``"diffusers"``.
    """
    parts: dict[str, dict[str, TrainedModule]] = {}
    for name, module in named.items():
        component, _, path = name.partition(".")
        parts.setdefault(component, {})[path] = module
    fields = {
        f"{component}.{field}": value
        for component, modules in parts.items()
        for field, value in lora_config(modules).items()
    }
    return {HEADER_KEY: json.dumps(fields, indent=2, sort_keys=True)}


def lora_config(modules: Mapping[str, TrainedModule]) -> dict[str, object]:
    """Fields of a PEFT ``LoraConfig`` under which every module has its scale.

    The most frequent rank and scale are ``r`` and ``lora_alpha``; the other modules stand in
    ``rank_pattern`` and ``alpha_pattern``.

    Args:
        modules: By their path in the component. ``text_model.`` is left off: transformers 5 has no
            such module in ``CLIPTextModel``, and a pattern also fits what it is the end of.

    Raises:
        LoraError: some modules are DoRA and some are not.
    """
    _require_one_kind(modules.values())
    paths = {name.removeprefix("text_model."): module for name, module in modules.items()}
    ranks = {path: module.rank for path, module in paths.items()}
    alphas = {path: module.alpha for path, module in paths.items()}
    usual_rank, usual_alpha = _most_frequent(ranks.values()), _most_frequent(alphas.values())
    return {
        "r": usual_rank,
        "lora_alpha": usual_alpha,
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != usual_rank},
        "alpha_pattern": {path: alpha for path, alpha in alphas.items() if alpha != usual_alpha},
        "target_modules": sorted(paths),
        "use_dora": any(module.magnitude is not None for module in modules.values()),
        "use_rslora": False,  # folded into the alphas
        "lora_bias": False,
        "bias": "none",
    }


def _most_frequent(values: Iterable[float]) -> float:
    return Counter(values).most_common(1)[0][0]


def _require_one_kind(modules: Iterable[TrainedModule]) -> None:
    dora = Counter(module.magnitude is not None for module in modules)
    if len(dora) > 1:
        raise LoraError(
            "A PEFT config makes all modules DoRA or none.",
            {"DoRA modules": dora[True], "others": dora[False]},
            "export in kohya's form, which keeps them apart.",
        )
