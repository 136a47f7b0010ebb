"""Names of a loaded ComfyUI model: ComfyUI's own key map first, ours for what it lacks."""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import comfy.lora

from ...lora_core.binding import is_text_encoder_key
from ...lora_core.errors import LoraError
from ...lora_core.models.names import rewritten
from ...lora_core.models.table import ModelTable, table_from_shapes
from ...lora_core.models.target import ModuleTargets, Target

PatchKey = str | tuple[Any, ...]
"""A key of ``ModelPatcher.add_patches``: name, or (name, (dim, start, length)[, function])."""

_UNET_PREFIX = "diffusion_model."
_NUMBERS = {"clip_l": 1, "clip_h": 1, "clip_g": 2}


class ComfyNames:
    """What LoRA files call the modules of one MODEL and CLIP.

    Attributes:
        components: Those of ``"unet"``, ``"te1"``, ``"te2"``, ... that are connected.
        shapes: Shape of every weight, by its name in ComfyUI's memory.
        patch_keys: Target name to the key that ``add_patches`` takes.
    """

    def __init__(self, model: Any, clip: Any) -> None:
        self._clip = weakref.ref(clip.cond_stage_model) if clip is not None else None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.patch_keys: dict[str, PatchKey] = {}
        self._unet_keys: Mapping[str, PatchKey] = {}
        self._clip_keys: Mapping[str, PatchKey] = {}
        self._encoders: dict[str, str] = {}
        if model is not None:
            self._add_shapes(model.model)
            self._unet_keys = comfy.lora.model_lora_keys_unet(model.model, {})
        if clip is not None:
            self._add_shapes(clip.cond_stage_model)
            self._clip_keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
            self._encoders = _numbered_encoders(clip.cond_stage_model.state_dict())
        self._own = self._own_table()
        self._known = {t.target_key: t for t in self._own.targets} if self._own else {}
        encoders = set(self._encoders.values()) or {"te1"} if clip is not None else set()
        self.components = frozenset(encoders | ({"unet"} if model is not None else set()))

    @property
    def family(self) -> str | None:
        """A name of ``BASES``, or None."""
        return self._own.family if self._own is not None else None

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every weight, where our own table knows the architecture; else none."""
        return self._own.targets if self._own is not None else ()

    def is_of(self, clip: Any) -> bool:
        """Whether this table was made with this text encoder, or without one."""
        if self._clip is None or clip is None:
            return self._clip is None and clip is None
        return self._clip() is clip.cond_stage_model

    def find(self, lora_key: str) -> tuple[ModuleTargets, ...]:
        """The modules that a name in a LoRA file addresses; see ``ModelTable.find``."""
        return next(filter(None, map(self._named, _spellings(lora_key))), ())

    def _named(self, name: str) -> tuple[ModuleTargets, ...]:
        """The modules that ComfyUI, or else our table, knows under this very name."""
        found = [
            self._module(keys[name]) for keys in (self._unet_keys, self._clip_keys) if name in keys
        ]
        present = tuple(targets for targets in found if targets is not None)
        if present:
            return present
        return self._own.names.get(name, ()) if self._own is not None else ()

    def patch_key(self, target: Target) -> PatchKey:
        """The key under which ``add_patches`` takes a change of ``target``."""
        known = self.patch_keys.get(target.target_key)
        if known is not None:
            return known
        if target.rows is None:
            return target.target_key
        start, stop = target.rows
        return (target.target_key, (0, start, stop - start))

    def _add_shapes(self, inner: Any) -> None:
        self.shapes.update({key: tuple(value.shape) for key, value in inner.state_dict().items()})
        # ComfyUI: the state dict holds packed data of quantised weights, of another shape (0.30).
        self.shapes.update({key: tuple(value.shape) for key, value in inner.named_parameters()})

    def _own_table(self) -> ModelTable | None:
        """Our table of the same model, or None for an architecture that only ComfyUI knows."""
        try:
            return table_from_shapes(self.shapes)
        except LoraError:
            return None

    def _module(self, patch_key: PatchKey) -> ModuleTargets | None:
        name = patch_key if isinstance(patch_key, str) else patch_key[0]
        if name not in self.shapes:
            return None
        weight = self._target(patch_key, name)
        bias_name = name.removesuffix(".weight") + ".bias"
        has_bias = isinstance(patch_key, str) and name != bias_name and bias_name in self.shapes
        return ModuleTargets(weight, self._target(bias_name, bias_name) if has_bias else None)

    def _target(self, patch_key: PatchKey, name: str) -> Target:
        known = self._known.get(name)
        if isinstance(patch_key, str) and known is not None:
            return known
        component = "unet"
        if not name.startswith(_UNET_PREFIX):
            component = self._encoders.get(name.partition(".")[0], "te1")
        canonical = known.canonical if known is not None else name.removeprefix(_UNET_PREFIX)
        if isinstance(patch_key, str):
            return Target(name, self.shapes[name], component, canonical)
        label = f"{name}[{patch_key[1]}]" + ("()" if len(patch_key) > 2 else "")
        self.patch_keys[label] = patch_key
        return Target(label, _narrowed(self.shapes[name], patch_key[1]), component, canonical)


def _spellings(lora_key: str) -> Iterator[str]:
    """Yield a name, then what it may mean.

    Some files of Flux (BFL's, x-labs') write the model's own names without a prefix.
    """
    yield lora_key
    others = list(rewritten(lora_key))
    yield from others
    for name in (lora_key, *others):
        if not is_text_encoder_key(name):
            yield _UNET_PREFIX + name


def _numbered_encoders(names: Iterable[str]) -> dict[str, str]:
    """Number the text encoders of a CLIP as LoRA files do; ``docs/weighting.md`` has the rule.

    Args:
        names: Of its weights, such as ``t5xxl.transformer.shared.weight``.

    Returns:
        ComfyUI's name of each encoder -> ``"te1"``, ``"te2"``, ...
    """
    found = dict.fromkeys(name.partition(".")[0] for name in names if ".transformer." in name)
    numbers = {name: number for name, number in _NUMBERS.items() if name in found}
    if len(found) == 1:
        return dict.fromkeys(found, "te1")
    following = count(max(numbers.values(), default=0) + 1)
    return {name: f"te{numbers.get(name) or next(following)}" for name in found}


def _narrowed(shape: tuple[int, ...], offset: tuple[int, int, int] | None) -> tuple[int, ...]:
    if offset is None:
        return shape
    dim, _, length = offset
    return (*shape[:dim], length, *shape[dim + 1 :])
