"""Which weight of a model each tensor of a LoRA changes, and why the others change none."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from .errors import LoraError, NothingMatchedError, ShapeMismatchError
from .factors import ROTATIONS, delta_shape, is_flat, plain_kind
from .formats.suffixes import BFL_CONTROL
from .lora import Lora
from .models.target import ModuleTargets, Target
from .modules import LoraModule, Part
from .refusals import file_not_supported, modules_not_supported, part_not_supported

USED = "used"
UNMATCHED = "unmatched"
MISMATCHED = "shape mismatch"
UNSUPPORTED = "not supported"
NOT_USED_HERE = "not used here"
UNKNOWN = "unknown name"

_FIRST_CONVOLUTION = "input_blocks.0.0.weight"
# Not of DoRA: the norms of a padded weight are not those that were trained.
_PADDED = ("lora", "diff", "norm")
_TEXT_ENCODER_NAMES = (
    *("lora_te", "lora_prior_te", "oft_te", "text_encoder", "text_model.", "encoder.layers."),
    *("clip_l.", "clip_g.", "clip_h.", "base_model.model.text_model.", "text_projection"),
    "base_model.model.encoder.layers.",
)


class NameTable(Protocol):
    """What binding needs to know of a model."""

    components: frozenset[str]

    def find(self, lora_key: str) -> tuple[ModuleTargets, ...]:
        """The modules a name addresses: none, one, or one in each of two text encoders."""


@dataclass(frozen=True, slots=True)
class BoundPart:
    """One part of one module, and where it goes.

    ``target`` is None unless ``verdict`` is ``"used"`` or ``"shape mismatch"``. A part that is
    ``"not supported"`` is one without which the others make no sense.
    """

    module: LoraModule
    part: Part
    target: Target | None
    verdict: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TensorRow:
    """What became of one tensor of a file."""

    key: str
    lora_key: str | None
    role: str | None
    target_key: str | None
    rule: str
    scale: float | None
    verdict: str
    reason: str | None


@dataclass(frozen=True)
class Binding:
    """A LoRA seen from one model: every tensor accounted for.

    ``refused`` are the modules that address a weight of the model but cannot be applied.
    """

    lora: Lora
    parts: tuple[BoundPart, ...]
    refused: tuple[LoraModule, ...] = ()

    def used(self) -> tuple[BoundPart, ...]:
        """The parts that change a weight of the model."""
        return tuple(bound for bound in self.parts if bound.verdict == USED)

    def rows(self) -> list[TensorRow]:
        """One row per tensor of the file, in the file's order."""
        rows = dict(self._module_rows())
        return [rows.get(key) or _unknown_row(self.lora, key) for key in self.lora.file.tensors]

    def _module_rows(self) -> Iterator[tuple[str, TensorRow]]:
        by_module: dict[str, list[BoundPart]] = {}
        for bound in self.parts:
            by_module.setdefault(bound.module.lora_key, []).append(bound)
        for module in self.lora.modules.values():
            bounds = by_module.get(module.lora_key, [])
            for role, key in module.keys.items():
                yield key, _row(self.lora, module, bounds, role, key)

    def totals(self) -> dict[str, int]:
        """Number of tensors by verdict."""
        return dict(Counter(row.verdict for row in self.rows()))

    def notes(self) -> list[str]:
        """Facts a user may be surprised by, each once, with the number of modules."""
        counts = Counter(note for module in self.lora.modules.values() for note in module.notes)
        twice = Counter((b.target.target_key, b.target.rows) for b in self.used() if b.target)
        doubled = sum(count > 1 for count in twice.values())
        notes = [f"{note} ({count} modules)" for note, count in counts.items()]
        if doubled:
            notes.append(f"{doubled} weights are addressed by more than one module; both apply")
        return notes

    def check(self, unmatched: str = "report") -> None:
        """Raise when this LoRA cannot be applied to this model.

        Args:
            unmatched: ``"report"`` accepts a file some of whose tensors match nothing;
                ``"error"`` does not.

        Raises:
            UnsupportedFormatError: the file as a whole, each of its modules, or a part that the
                others need, is of a kind that is not supported.
            ShapeMismatchError: a name matches a weight of another shape.
            NothingMatchedError: no tensor addresses a weight of this model.
            LoraError: ``unmatched`` is ``"error"`` and some tensor is not used.
        """
        lora = self.lora
        if lora.problem is not None:
            raise file_not_supported(lora)
        self._check_shapes()
        self._check_supported()
        if not self.used() and not any(b.verdict == NOT_USED_HERE for b in self.parts):
            self._raise_nothing_matched()
        if unmatched == "error":
            self._check_complete()

    def _check_shapes(self) -> None:
        wrong = [bound for bound in self.parts if bound.verdict == MISMATCHED]
        if wrong:
            first = wrong[0]
            raise ShapeMismatchError(
                f"{self.lora.name} is for another base: {len(wrong)} of its modules match a "
                "weight of this model that has another shape.",
                {
                    "First": first.module.lora_key,
                    "Weight": first.target.target_key if first.target else "-",
                    "Shapes": first.reason,
                },
                "use a LoRA made for this base, or load the base it was made for.",
            )

    def _check_supported(self) -> None:
        needed = [bound for bound in self.parts if bound.verdict == UNSUPPORTED]
        if needed:
            raise part_not_supported(self.lora, needed[0].module, needed[0].reason)

    def _raise_nothing_matched(self) -> None:
        lora = self.lora
        modules = tuple(lora.modules.values())
        if modules and all(module.problem for module in modules):
            raise modules_not_supported(lora, modules)
        if self.refused:
            raise modules_not_supported(lora, self.refused)
        raise NothingMatchedError(
            f"{lora.name} is not for this model: none of its tensors addresses a weight of it.",
            {"Tensors": len(lora.file.tensors), "First": next(iter(lora.file.tensors), "none")},
            "use a LoRA made for this base; `lora-workbench inspect` names the base of a file.",
        )

    def _check_complete(self) -> None:
        unused = [row for row in self.rows() if row.verdict not in (USED, NOT_USED_HERE)]
        if unused:
            raise LoraError(
                f"{self.lora.name}: {len(unused)} tensors are not used, and the setting "
                "'unmatched' says this is an error.",
                {row.key: row.reason for row in unused[:3]},
                "set 'unmatched' to 'report', or use a file made for this base.",
            )


def bind(lora: Lora, table: NameTable) -> Binding:
    """Find the weight of every module of a LoRA by name and shape. Reads no factor."""
    refused = () if lora.problem else tuple(_refused(lora, table))
    return Binding(lora, tuple(_bound_parts(lora, table)), refused)


def _refused(lora: Lora, table: NameTable) -> Iterator[LoraModule]:
    for module in lora.modules.values():
        if module.problem is not None and table.find(module.lora_key):
            yield module


def _bound_parts(lora: Lora, table: NameTable) -> Iterator[BoundPart]:
    for module in lora.modules.values():
        if module.problem is not None or lora.problem is not None:
            continue
        found = _fitting(lora, module, table.find(module.lora_key))
        for part in module.parts:
            yield _bound(lora, module, part, found, table.components)


def _fitting(
    lora: Lora, module: LoraModule, found: tuple[ModuleTargets, ...]
) -> ModuleTargets | None:
    """The one module meant; of two text encoders the one whose shapes fit."""
    if len(found) < 2:
        return found[0] if found else None
    fitting = [
        targets
        for targets in found
        if all(_fits(lora, part, _target(part, targets)) for part in module.parts)
    ]
    return fitting[0] if len(fitting) == 1 else found[0]


def _target(part: Part, targets: ModuleTargets) -> Target | None:
    return targets.weight if part.of == "weight" else targets.bias


def _bound(
    lora: Lora,
    module: LoraModule,
    part: Part,
    targets: ModuleTargets | None,
    components: frozenset[str],
) -> BoundPart:
    if targets is None:
        if is_text_encoder_key(module.lora_key) and not components & {"te1", "te2"}:
            return BoundPart(module, part, None, NOT_USED_HERE, "no text encoder is connected")
        if not is_text_encoder_key(module.lora_key) and "unet" not in components:
            return BoundPart(module, part, None, NOT_USED_HERE, "no diffusion model is connected")
        return BoundPart(module, part, None, UNMATCHED, "the model has no module of this name")
    target = _target(part, targets)
    if target is None:
        return BoundPart(module, part, None, UNMATCHED, f"the module has no {part.of}")
    if not _fits(lora, part, target):
        if _widens(lora, module, part, target):
            shapes = (
                f"from {list(target.shape)} to {list(_trimmed(delta_shape(_shapes(lora, part))))}"
            )
            reason = f"a weight must grow {shapes} (reshape_weight), which is not supported yet"
            return BoundPart(module, part, None, UNSUPPORTED, reason)
        reason = f"{_described(lora, part)}, weight {list(target.shape)}"
        return BoundPart(module, part, target, MISMATCHED, reason)
    return BoundPart(module, part, target, USED)


def is_text_encoder_key(lora_key: str) -> bool:
    """Whether a name addresses a text encoder, by how it starts."""
    return lora_key.startswith(_TEXT_ENCODER_NAMES)


def _fits(lora: Lora, part: Part, target: Target | None) -> bool:
    """Whether the factors make a delta of the target's shape.

    Trailing ones do not count: linear and 1x1-convolution factors are interchangeable. Flat
    factors ``(rank, in * kernel)`` of a kernel fit too: LyCORIS and ComfyUI's TrainLoraNode write
    them.
    """
    if target is None:
        return False
    shapes = _shapes(lora, part)
    if part.kind in ROTATIONS:
        blocks = shapes["oft_blocks"]
        return target.shape[0] == blocks[-3] * blocks[-1]
    if part.axis is not None and math.prod(shapes["magnitude"]) != target.shape[part.axis]:
        return False
    delta, wanted = _trimmed(delta_shape(shapes)), _trimmed(target.shape)
    if delta == wanted:
        return True
    if len(delta) == 2 and is_flat(shapes):
        return delta == (wanted[0], math.prod(wanted[1:]))
    if part.kind not in _PADDED:
        return False
    can_pad = target.canonical == _FIRST_CONVOLUTION and len(delta) == len(wanted)
    return can_pad and delta[1] < wanted[1] and delta[:1] + delta[2:] == wanted[:1] + wanted[2:]


def _widens(lora: Lora, module: LoraModule, part: Part, target: Target) -> bool:
    """Whether a file of a larger input layer means the weight to grow, with zeros.

    Source: ComfyUI's ``reshape_weight``, which it adds to BFL's control LoRAs when it reads them.
    """
    is_meant = "reshape_weight" in module.keys or (
        BFL_CONTROL in lora.formats and module.lora_key == "img_in"
    )
    if not is_meant or "down" not in part.keys:
        return False
    delta, stored = delta_shape(_shapes(lora, part)), target.shape
    return delta[0] >= stored[0] and math.prod(delta) > math.prod(stored)


def _shapes(lora: Lora, part: Part) -> dict[str, tuple[int, ...]]:
    return {role: lora.shape(key) for role, key in part.keys.items()}


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _described(lora: Lora, part: Part) -> str:
    return ", ".join(f"{role} {list(lora.shape(key))}" for role, key in part.keys.items())


_ROLES_OF_FACTORS = ("alpha", "reshape_weight")
_RULES: Mapping[str, str] = {
    "lora": "scale * up @ down",
    "tucker": "scale * up @ (mid x down)",
    "loha": "scale * (w1_a @ w1_b) * (w2_a @ w2_b)",
    "lokr": "scale * kron(w1, w2)",
    "oft": "blocks of outputs, each turned",
    "boft": "blocks of outputs, turned in stages",
    "lora-bias": "bias += scale * up_bias",
    "diff": "+= diff",
    "norm": "+= diff",
}


def _row(
    lora: Lora, module: LoraModule, bounds: Iterable[BoundPart], role: str, key: str
) -> TensorRow:
    problem = lora.problem or module.problem
    if problem is not None:
        return TensorRow(key, module.lora_key, role, None, "", None, UNSUPPORTED, problem)
    own = [b for b in bounds if role in b.part.keys] or (
        [b for b in bounds if b.part.kind == module.kind] if role in _ROLES_OF_FACTORS else []
    )
    if not own:
        reason = f"{role} has no effect on a full difference"
        return TensorRow(key, module.lora_key, role, None, "", None, UNMATCHED, reason)
    bound = own[0]
    return TensorRow(
        key,
        module.lora_key,
        role,
        bound.target.target_key if bound.target else None,
        _rule(bound.part),
        module.scale,
        bound.verdict,
        bound.reason,
    )


def _rule(part: Part) -> str:
    kind = plain_kind(part.kind)
    change = _RULES["tucker" if "mid" in part.keys else kind]
    if part.axis is not None:
        return f"magnitude * (W0 + {change}) / its norm"
    return f"{change}, times rescale" if "rescale" in part.keys else change


def _unknown_row(lora: Lora, key: str) -> TensorRow:
    if lora.problem is not None:
        return TensorRow(key, None, None, None, "", None, UNSUPPORTED, lora.problem)
    module = next((m for m in lora.modules.values() if m.problem and key in m.problem), None)
    reason = module.problem if module else "no known suffix ends this name"
    return TensorRow(key, None, None, None, "", None, UNKNOWN, reason)
