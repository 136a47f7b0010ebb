"""The factors of one module by their shapes: whether they fit each other, and what they make."""

import math
from collections.abc import Mapping

from torch import Tensor

from .adapters import (
    Adapter,
    Additive,
    DiffAdapter,
    DoraAdapter,
    LohaAdapter,
    LokrAdapter,
    LoraAdapter,
    OftAdapter,
)
from .adapters.dora import magnitude_axis
from .adapters.lokr import FACTORS as _LOKR_FIELDS

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Role to the shape of its tensor."""

DORA = "dora"
WITH_MAGNITUDES = {"lora": DORA, "loha": "loha+dora", "lokr": "lokr+dora"}
"""Kind of a module to its kind with magnitudes."""
ROTATIONS = ("oft", "boft")
_DORAS = {kind: plain for plain, kind in WITH_MAGNITUDES.items()}

ROLES = {
    "lora": ("down", "up", "mid"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": tuple(f"lokr_{field}" for field in _LOKR_FIELDS),
    "oft": ("oft_blocks", "rescale"),
    "boft": ("oft_blocks", "rescale"),
}
"""The roles that make one change of a weight, by kind."""
_NEEDED = {"lora": 2, "loha": 4, "oft": 1, "boft": 1}  # of the roles above, the first ones


def plain_kind(kind: str) -> str:
    """The kind without its magnitudes."""
    return _DORAS.get(kind, kind)


def missing_factors(kind: str, roles: Mapping[str, object]) -> list[str]:
    """The roles without which a module of a kind makes no change."""
    plain = plain_kind(kind)
    if plain == "lokr":
        return [name for name in ("lokr_w1", "lokr_w2") if not _has_side(name, roles)]
    return sorted(set(ROLES[plain][: _NEEDED[plain]]) - set(roles))


def _has_side(name: str, roles: Mapping[str, object]) -> bool:
    return name in roles or (f"{name}_a" in roles and f"{name}_b" in roles)


def rank_of(shapes: Shapes) -> int | None:
    """Of the factors that a scale counts in; None where there are none."""
    if "down" in shapes:
        return shapes["down"][0]
    inner = next((r for r in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b") if r in shapes), None)
    return None if inner is None else shapes[inner][0]


def delta_shape(shapes: Shapes) -> Shape:
    """``(out, in, *kernel)``, or ``(out, in * kernel)`` where the factors do not tell them apart.

    Of a difference its own shape. Not for rotations.
    """
    if "down" in shapes:
        kernel = shapes["mid"][2:] if "mid" in shapes else shapes["down"][2:]
        return (shapes["up"][0], shapes["down"][1], *kernel)
    if "hada_w1_a" in shapes:
        return _product_shape(shapes["hada_w1_a"], shapes["hada_w1_b"], shapes.get("hada_t1"))
    if any(role.startswith("lokr_") for role in shapes):
        first, second = (_side_shape(side, shapes) for side in ("lokr_w1", "lokr_w2"))
        return (first[0] * second[0], first[1] * second[1], *second[2:])
    return next(shape for role, shape in shapes.items() if role != "magnitude")


def _side_shape(side: str, shapes: Shapes) -> Shape:
    if side in shapes:
        return shapes[side]
    core = shapes.get("lokr_t2") if side == "lokr_w2" else None
    return _product_shape(shapes[f"{side}_a"], shapes[f"{side}_b"], core)


def _product_shape(left: Shape, right: Shape, core: Shape | None) -> Shape:
    if core is None:
        return (left[0], *right[1:])
    return (left[1], right[1], *core[2:])


def is_flat(shapes: Shapes) -> bool:
    """Whether factors of a kernel may be stored flat: ``(rank, in * kernel)``."""
    makes_product = "down" in shapes or "hada_w1_b" in shapes or "lokr_w2_b" in shapes
    return makes_product and not {"mid", "hada_t1", "lokr_t2"} & set(shapes)


def factor_problem(kind: str, shapes: Shapes, magnitude_key: str) -> str | None:
    """Why the factors of one module do not fit each other, or None.

    Args:
        kind: One that is supported, its needed roles present.
        shapes: Of all tensors of the module.
        magnitude_key: Name of the magnitudes, "" without.
    """
    plain = plain_kind(kind)
    problem = _CHECKS[plain](shapes) if plain in _CHECKS else None
    if problem is None and "magnitude" in shapes:
        return _magnitude_problem(kind, shapes, magnitude_key)
    return problem


def _magnitude_problem(kind: str, shapes: Shapes, key: str) -> str | None:
    if kind not in _DORAS:
        return f"DoRA magnitudes beside {kind} factors are not known from any writer"
    if axis_of(shapes, key) is not None:
        return None
    magnitude = list(shapes["magnitude"])
    factors = ", ".join(
        f"{role} {list(shapes[role])}" for role in ROLES[plain_kind(kind)] if role in shapes
    )
    return (
        f"the DoRA magnitudes {magnitude} are neither one per output nor one per input: {factors}"
    )


def axis_of(shapes: Shapes, magnitude_key: str) -> int | None:
    """Which channels the magnitudes of a module belong to; see ``magnitude_axis``."""
    outputs, inputs, *_ = delta_shape(shapes)
    stored = shapes["magnitude"]
    if "down" not in shapes and is_flat(shapes) and len(stored) > 2 and inputs % stored[1] == 0:
        inputs = stored[1]  # of a kernel; binding holds it against the weight
    return magnitude_axis(stored, outputs, inputs, magnitude_key.endswith(".dora_scale"))


def _lora_problem(shapes: Shapes) -> str | None:
    down, up = shapes["down"], shapes["up"]
    if len(down) < 2 or len(up) < 2 or 0 in down or 0 in up:
        return f"the factors are not matrices: down {list(down)}, up {list(up)}"
    if down[0] != up[1]:
        return f"'down' and 'up' disagree on the rank: down {list(down)}, up {list(up)}"
    if any(size != 1 for size in up[2:]):
        return f"an up factor with a kernel is not known from any writer: up {list(up)}"
    if "mid" in shapes:
        mid = shapes["mid"]
        if mid[:2] != (down[0], down[0]) or any(size != 1 for size in down[2:]):
            return f"the Tucker core does not fit: down {list(down)}, mid {list(mid)}"
    return None


def _loha_problem(shapes: Shapes) -> str | None:
    if ("hada_t1" in shapes) != ("hada_t2" in shapes):
        return "one of the Tucker cores hada_t1 and hada_t2 is missing"
    sides = [
        (f"hada_w{n}_a", f"hada_w{n}_b", f"hada_t{n}" if f"hada_t{n}" in shapes else None)
        for n in (1, 2)
    ]
    for side in sides:
        problem = _product_problem(shapes, *side)
        if problem is not None:
            return problem
    first, second = (
        _product_shape(shapes[a], shapes[b], shapes[t] if t else None) for a, b, t in sides
    )
    if first != second:
        return f"the two products disagree: {list(first)} and {list(second)}"
    return None


def _lokr_problem(shapes: Shapes) -> str | None:
    for side in ("lokr_w1", "lokr_w2"):
        if side in shapes:
            if len(shapes[side]) < 2 or 0 in shapes[side]:
                return f"{side} is not a matrix: {list(shapes[side])}"
            if f"{side}_a" in shapes or f"{side}_b" in shapes:
                return f"{side} stands beside its own factors"
            continue
        core = "lokr_t2" if side == "lokr_w2" and "lokr_t2" in shapes else None
        problem = _product_problem(shapes, f"{side}_a", f"{side}_b", core)
        if problem is not None:
            return problem
    if "lokr_t1" in shapes or ("lokr_t2" in shapes and "lokr_w2" in shapes):
        return "a Tucker core of a full matrix or of w1 is not known from any writer"
    first = _side_shape("lokr_w1", shapes)
    if len(first) != 2:
        return f"a first matrix with a kernel is not known from any writer: {list(first)}"
    return None


def _product_problem(
    shapes: Shapes, left_role: str, right_role: str, core: str | None
) -> str | None:
    """Why two factors, and a core between them, have no product."""
    left, right = shapes[left_role], shapes[right_role]
    told = f"{left_role} {list(left)}, {right_role} {list(right)}"
    if len(left) != 2 or len(right) < 2 or 0 in left or 0 in right:
        return f"the factors are not matrices: {told}"
    if core is None:
        if left[1] != right[0]:
            return f"'{left_role}' and '{right_role}' disagree on the rank: {told}"
        return None
    if len(right) != 2 or shapes[core][:2] != (left[0], right[0]):
        return f"the Tucker core does not fit: {told}, {core} {list(shapes[core])}"
    return None


def _oft_problem(shapes: Shapes) -> str | None:
    blocks = shapes["oft_blocks"]
    if len(blocks) not in (3, 4) or 0 in blocks or blocks[-1] != blocks[-2]:
        return f"oft_blocks are not square matrices: {list(blocks)}"
    count, size = blocks[-3], blocks[-1]
    if len(blocks) == 4 and (size % 2 or count % 2 ** (blocks[0] - 1)):
        return f"oft_blocks are no butterfly of as many stages: {list(blocks)}"
    if "rescale" in shapes and math.prod(shapes["rescale"]) != count * size:
        return (
            f"rescale is not one number per output: {list(shapes['rescale'])}, "
            f"oft_blocks {list(blocks)}"
        )
    return None


_CHECKS = {
    "lora": _lora_problem,
    "loha": _loha_problem,
    "lokr": _lokr_problem,
    "oft": _oft_problem,
    "boft": _oft_problem,
}


def adapter_of(
    tensors: Mapping[str, Tensor], axis: int | None, alpha: float | None, full_rank: int | None
) -> Adapter:
    """The adapter of a module's factors.

    Args:
        tensors: By role.
        axis: Of DoRA magnitudes, None without.
        alpha: As stored or configured.
        full_rank: See ``LokrAdapter``.
    """
    change: Additive
    if "oft_blocks" in tensors:
        return OftAdapter(tensors["oft_blocks"], tensors.get("rescale"), alpha)
    if "down" in tensors:
        change = LoraAdapter(tensors["down"], tensors["up"], tensors.get("mid"), alpha)
    elif "hada_w1_a" in tensors:
        fields = _fields(tensors, "hada_")
        change = LohaAdapter(**fields, alpha=alpha)
    elif any(role.startswith("lokr_") for role in tensors):
        fields = _fields(tensors, "lokr_")
        change = LokrAdapter(**fields, alpha=alpha, full_rank=full_rank)
    else:
        (tensor,) = tensors.values()
        return DiffAdapter(tensor)
    return change if axis is None else DoraAdapter(change, tensors["magnitude"], axis)


def _fields(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        role.removeprefix(prefix): tensor
        for role, tensor in tensors.items()
        if role.startswith(prefix)
    }
