"""The tensors that share a module key, understood: kind, rank, alpha, and what can be applied."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .factors import (
    ROLES,
    ROTATIONS,
    WITH_MAGNITUDES,
    axis_of,
    factor_problem,
    missing_factors,
    plain_kind,
    rank_of,
)
from .files.tensor_file import TensorFile
from .formats.peft_config import PeftConfig
from .formats.suffixes import Role

_PEFT_PREFIXES = ("base_model.model.", "unet.", "transformer.", "text_encoder.", "text_encoder_2.")
_NO_FACTORS = ("diff", "norm")
_SUPPORTED = (*ROLES, *WITH_MAGNITUDES.values(), *_NO_FACTORS)
_PEFT_KINDS = {"lora": "LORA", "loha": "LOHA", "lokr": "LOKR"}


@dataclass(frozen=True, slots=True)
class Part:
    """The tensors of one module that change one parameter.

    Attributes:
        of: ``"weight"`` or ``"bias"``.
        kind: That of its module, or ``"diff"``, ``"norm"`` or ``"lora-bias"``.
        keys: Role to tensor name.
        axis: Of magnitudes, the channels they belong to: 0 outputs, 1 inputs; None without.
    """

    of: str
    kind: str
    keys: Mapping[str, str]
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class LoraModule:
    """All tensors of a file that share a module key.

    Attributes:
        lora_key: Name in the file without the suffix.
        kind: Adapter kind shown to the user: ``"lora"``, ``"loha"``, ``"lokr"``; with magnitudes
            ``"dora"``, ``"loha+dora"``, ``"lokr+dora"``; ``"oft"``, ``"boft"``, ``"diff"``,
            ``"norm"``; or one that is recognised but not supported.
        keys: Role to tensor name, every tensor of the module.
        parts: What can be applied; empty when ``problem`` says why not.
        rank: What alpha counts in: rows of ``down`` or of its like; None for kinds without, and
            for a LoKr of two full matrices.
        alpha: Stored or configured alpha in the unit of rank, None when there is none. Of an OFT
            its constraint.
        problem: Why the module cannot be applied, or None.
        notes: Facts a user may be surprised by.
    """

    lora_key: str
    kind: str
    keys: Mapping[str, str]
    parts: tuple[Part, ...] = ()
    rank: int | None = None
    alpha: float | None = None
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def scale(self) -> float | None:
        """``alpha / rank``, 1 when there is no alpha or alpha is 0; None for kinds without."""
        if self.rank is None:
            return 1.0 if plain_kind(self.kind) == "lokr" and self.problem is None else None
        return self.alpha / self.rank if self.alpha else 1.0


def module_of(
    lora_key: str,
    roles: Mapping[Role, str],
    file: TensorFile,
    alphas: Mapping[str, float],
    config: PeftConfig | None,
    clash: str | None,
) -> LoraModule:
    """Understand one module; reads no factor.

    Args:
        lora_key: Its key in the file.
        roles: Role to tensor name.
        file: Tells the tensors' shapes and dtypes.
        alphas: Tensor name to value, of every stored alpha.
        config: PEFT's, where there is one.
        clash: Why its tensors contradict each other, as far as names tell.
    """
    keys = {role.name: key for role, key in roles.items()}
    kind = _kind(roles, file)
    shapes = {role: file.tensors[key].shape for role, key in keys.items()}
    problem = clash or _problem(kind, roles, keys) or _dtype_problem(keys, file)
    problem = problem or factor_problem(kind, shapes, keys.get("magnitude", ""))
    plain = plain_kind(kind)
    if problem is None and config is not None and plain in _PEFT_KINDS:
        problem = config.problem_for(_PEFT_KINDS[plain])
    if problem is not None:
        return LoraModule(lora_key, kind, keys, problem=problem)
    rank = rank_of(shapes)
    alpha = alphas[keys["alpha"]] if "alpha" in keys else None
    if alpha is None and config is not None and plain in _PEFT_KINDS:
        name = _without_prefix(lora_key)
        rank = rank or config.rank_of(name)
        alpha = None if rank is None else config.alpha_of(name, rank)
    axis = axis_of(shapes, keys["magnitude"]) if "magnitude" in keys else None
    notes = tuple(_notes(kind, keys, file, alpha, axis))
    return LoraModule(lora_key, kind, keys, _parts(kind, keys, axis), rank, alpha, None, notes)


def _notes(
    kind: str, keys: Mapping[str, str], file: TensorFile, alpha: float | None, axis: int | None
) -> Iterator[str]:
    if kind in ROTATIONS:
        yield f"{kind}: ComfyUI's own loader takes the strength of it twice"
        if alpha:
            yield f"{kind} with a constraint: ComfyUI's own loader takes another than LyCORIS"
        if kind == "oft" and "rescale" in keys:
            yield "oft with rescale: ComfyUI's own loader leaves the rescale out"
        return
    if alpha == 0:
        yield "alpha is 0: read as alpha = rank, as kohya does"
    if axis == 0:
        yield "DoRA by output channel: ComfyUI's own loader takes another norm than was trained"
        stored = file.tensors[keys["magnitude"]].shape
        is_either = keys["magnitude"].endswith(".dora_scale")
        if kind == "dora" and is_either and len(stored) == 1:
            down, up = (file.tensors[keys[role]].shape for role in ("down", "up"))
            if down[1] == up[0]:
                yield "flat DoRA magnitudes of square weights are read as of output channels"


def _without_prefix(lora_key: str) -> str:
    for prefix in _PEFT_PREFIXES:
        lora_key = lora_key.removeprefix(prefix)
    return lora_key


def _kind(roles: Mapping[Role, str], file: TensorFile) -> str:
    """The most specific kind among the roles; with magnitudes the kind of both."""
    names, kinds = {role.name for role in roles}, {role.kind for role in roles} - {"shared"}
    exotic = sorted(kinds - {"lora", *_NO_FACTORS})
    kind = exotic[0] if exotic else _first(("lora", *_NO_FACTORS), kinds)
    if "magnitude" in names and kinds:
        return WITH_MAGNITUDES.get(kind, kind if exotic else "dora")
    if kind == "oft":
        blocks = next((key for role, key in roles.items() if role.name == "oft_blocks"), None)
        return "boft" if blocks and len(file.tensors[blocks].shape) == 4 else "oft"
    return kind


def _first(kinds: Iterable[str], present: set[str]) -> str:
    return next((kind for kind in kinds if kind in present), "unknown")


def _problem(kind: str, roles: Mapping[Role, str], keys: Mapping[str, str]) -> str | None:
    if kind == "unknown":
        return "no factors stand beside " + ", ".join(keys.values())
    if kind == "set":
        return "set_weight, which replaces a whole weight, is not supported yet"
    if kind not in _SUPPORTED:
        return f"{kind} modules are not supported yet"
    if "scale_override" in keys:
        return "a .scale tensor that replaces alpha / rank is not supported yet"
    if kind in _NO_FACTORS:
        return None
    kinds = sorted({role.kind for role in roles} - {"shared", *_NO_FACTORS})
    if len(kinds) > 1:
        return f"factors of two kinds in one module: {' and '.join(kinds)}"
    missing = missing_factors(kind, keys)
    return f"the {' and '.join(missing)} factor is missing" if missing else None


def _dtype_problem(keys: Mapping[str, str], file: TensorFile) -> str | None:
    """Which tensor of a module holds no factors, or None."""
    for role, key in keys.items():
        dtype = file.tensors[key].dtype
        if role not in ("alpha", "reshape_weight") and not dtype.is_floating_point:
            return f"the {role} tensor holds {dtype} numbers"
    return None


_OTHER_PARTS = {
    "up_bias": ("bias", "lora-bias"),
    "diff": ("weight", "diff"),
    "diff_b": ("bias", "diff"),
    "w_norm": ("weight", "norm"),
    "b_norm": ("bias", "norm"),
}


def _parts(kind: str, keys: Mapping[str, str], axis: int | None) -> tuple[Part, ...]:
    """The parts of a module, in the order of their first tensor; factors with ``axis``."""
    own = dict.fromkeys(ROLES.get(plain_kind(kind), ()), ("weight", kind))
    places = own | _OTHER_PARTS
    grouped: dict[tuple[str, str], dict[str, str]] = {}
    for role, key in keys.items():
        if role in places:
            grouped.setdefault(places[role], {})[role] = key
    if axis is not None:
        grouped["weight", kind]["magnitude"] = keys["magnitude"]
    return tuple(
        Part(of, part_kind, roles, axis if part_kind == kind else None)
        for (of, part_kind), roles in grouped.items()
    )
