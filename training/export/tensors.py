"""The tensors of a file, and what its header says of their scales."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ...lora_core.errors import LoraError, UnknownChoiceError
from ...lora_core.formats.peft_config import HEADER_KEY
from ..config import Form
from .names import ExportTable, ModuleNames
from .trained import TrainedModule

FORMS = ("kohya", "peft", "diffusers")
DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

# Below this size much of a factor would fall under fp16's smallest normal number, 2**-14.
_SMALL_IN_FP16 = 2.0**-10


def named_modules(
    modules: Sequence[TrainedModule], table: ExportTable, form: Form = "kohya"
) -> dict[str, TrainedModule]:
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
    named: Mapping[str, TrainedModule], form: Form = "kohya", dtype: str = "fp16"
) -> dict[str, Tensor]:
    """The tensors of a file in memory; in kohya's names they are core's ``LORA_MODEL``.

    Args:
        named: What ``named_modules`` gave for the same form.
        form: ``"kohya"`` has an ``alpha`` beside each pair, ``scale * rank`` in float32, the same
            for all of a component: diffusers (0.42) applies the most frequent alpha of a file to
            every attention module. Where alphas differ, ``up`` takes the difference. The other
            forms have their alphas in ``lora_config``.
        dtype: Of the factors. Alphas and magnitudes are float32: they are few, and a rounded one
            would change the whole weight.

    Raises:
        UnknownChoiceError: no form or dtype of this name.
    """
    if dtype not in DTYPES:
        raise UnknownChoiceError("dtype", dtype, DTYPES)
    alphas = _component_alphas(named.values())
    tensors: dict[str, Tensor] = {}
    for name, module in named.items():
        up, down = module.saved
        alpha = alphas[module.target.component]
        if form == "kohya" and module.alpha != alpha:
            up = (up.double() * (module.alpha / alpha)).float()
        if dtype == "fp16":
            up, down = _balanced(up, down)
        up, down = up.to(DTYPES[dtype]), down.to(DTYPES[dtype])
        if form == "kohya":
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
        else:
            tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        if module.magnitude is not None:
            suffix, shape = _magnitude_place(form, len(module.target.shape))
            magnitude = module.magnitude.detach().cpu().float()
            tensors[f"{name}.{suffix}"] = magnitude.reshape(shape).contiguous()
    return tensors


def _component_alphas(modules: Iterable[TrainedModule]) -> dict[str, float]:
    """The most frequent alpha of each component."""
    alphas: dict[str, list[float]] = {}
    for module in modules:
        alphas.setdefault(module.target.component, []).append(module.alpha)
    return {component: _most_frequent(values) for component, values in alphas.items()}


def _magnitude_place(form: Form, dimensions: int) -> tuple[str, tuple[int, ...]]:
    """Name and shape of DoRA's magnitudes: LyCORIS' ``(out, 1, ...)``, or PEFT's own.

    PEFT saves them without ``.weight`` and reads both; transformers (5.23), into whose text
    encoders diffusers loads a file, reads only names with it.
    """
    if form == "kohya":
        return "dora_scale", (-1, *[1] * (dimensions - 1))
    shape = (-1,) if dimensions == 2 else (1, -1, *[1] * (dimensions - 2))
    return "lora_magnitude_vector.weight", shape


def _balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, without factors that fp16 would cut short.

    A barely trained ``up`` has numbers that fp16 holds with few digits or none. Each column of
    ``up`` and row of ``down`` that needs it is moved by a power of two, which is exact.
    """
    columns, rows = _sizes(up.transpose(0, 1)), _sizes(down)
    is_small = (torch.minimum(columns, rows) < _SMALL_IN_FP16) & (columns * rows > 0)
    halfway = ((rows / columns).log2() / 2).round()
    shift = torch.where(is_small, halfway, torch.zeros_like(halfway)).exp2()
    ones = [1] * (up.dim() - 2)
    return up * shift.view(1, -1, *ones), down / shift.view(-1, *[1] * (down.dim() - 1))


def _sizes(rows: Tensor) -> Tensor:
    """Root mean square of each row."""
    return rows.flatten(1).square().mean(1).sqrt()


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
