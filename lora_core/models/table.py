"""The forward table: every name a LoRA file can use -> the model's storage."""

from collections.abc import Iterable, Iterator, Mapping

from ..errors import LoraError
from .architectures import checkpoint_shapes
from .components import (
    Shapes,
    TextEncoder,
    nothing_found,
    refuse_later_models,
    text_encoders,
    unet_targets,
)
from .detect import detect_family
from .names import rewritten, text_encoder_names, unet_names
from .target import ModuleTargets, Target
from .unet import diffusers_modules_of_ldm


class ModelTable:
    """What LoRA files call the modules of one model.

    Attributes:
        family: A name of ``BASES``, or None for a model that is none of these.
        targets: Every weight that can be changed: the UNet's, then the text encoders', each in
            the order of the state dict.
        components: Those of ``"unet"``, ``"te1"``, ``"te2"`` that the model has.
        names: Every known module name -> the modules it addresses.
    """

    def __init__(
        self,
        family: str | None,
        targets: Iterable[Target],
        names: Mapping[str, tuple[ModuleTargets, ...]],
    ) -> None:
        self.family = family
        self.targets = tuple(targets)
        self.components = frozenset(target.component for target in self.targets)
        self.names = names

    def find(self, lora_key: str) -> tuple[ModuleTargets, ...]:
        """Find the modules that a name in a LoRA file addresses.

        Args:
            lora_key: Name of a module as the file writes it, without the suffix of a role.

        Returns:
            Nothing when the name is unknown; one module normally; two when the name fits both text
            encoders of the model, and only the shapes can tell which is meant.
        """
        found = self.names.get(lora_key)
        if found is not None:
            return found
        cured = (self.names[name] for name in rewritten(lora_key) if name in self.names)
        return next(cured, ())


def table_for_base(base: str) -> ModelTable:
    """Build the table of a known base, without any file.

    Args:
        base: A name of ``BASES``.

    Returns:
        The table of the base's checkpoint; its target keys are checkpoint names.

    Raises:
        UnknownChoiceError: No base of this name.
        UnsupportedFormatError: The base is known but comes in a later version.
    """
    return table_from_shapes(checkpoint_shapes(base))


def table_from_shapes(shapes: Shapes) -> ModelTable:
    """Build the table of a model from the names and shapes of its state dict.

    Knows Stable Diffusion 1, 2 and XL in checkpoints, in ComfyUI's memory and in diffusers, whole
    or one component alone. Depths and widths are read from the names, not assumed.

    Args:
        shapes: Name -> shape; names that are no weight of a UNet or text encoder are passed over.

    Returns:
        The table.

    Raises:
        UnsupportedFormatError: The model is recognised as one that comes in a later version.
        LoraError: No UNet and no text encoder was found, or two modules share a name.
    """
    refuse_later_models(shapes)
    unet, encoders = unet_targets(shapes), text_encoders(shapes)
    if not unet and not encoders:
        raise nothing_found(shapes)
    names = _Names()
    names.add_unet(unet)
    for encoder in encoders:
        names.add_text_encoder(encoder)
    targets = [*unet, *(target for encoder in encoders for target in encoder.targets)]
    family = detect_family({target.canonical: target.shape for target in unet})
    return ModelTable(family, targets, names.known)


class _Names:
    """The names collected so far; a name never means two modules of one component."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[ModuleTargets, ...]] = {}

    def add_unet(self, targets: Iterable[Target]) -> None:
        modules = _modules(targets)
        diffusers = diffusers_modules_of_ldm(modules)
        for ldm, module in modules.items():
            self._add(unet_names(ldm, diffusers.get(ldm)), module)
            self._add(_own_names(module), module)
            if module.bias:
                own = (module.bias.target_key, f"diffusion_model.{ldm}.bias")
                self._add(own, ModuleTargets(module.bias, None))

    def add_text_encoder(self, encoder: TextEncoder) -> None:
        for name, module in _modules(encoder.targets).items():
            self._add(text_encoder_names(name, encoder.role, encoder.comfy), module)
            self._add(_own_names(module), module)

    def _add(self, names: Iterable[str], module: ModuleTargets) -> None:
        entry = (module,)
        for name in names:
            others = self.known.setdefault(name, entry)
            if others is not entry and module not in others:
                self.known[name] = (*others, module)
                _check_distinct(name, self.known[name])


def _modules(targets: Iterable[Target]) -> dict[str, ModuleTargets]:
    """Group weights and biases by module, under the canonical module name."""
    parts: dict[str, dict[str, Target]] = {}
    for target in targets:
        module, _, leaf = target.canonical.rpartition(".")
        parts.setdefault(module, {})[leaf] = target
    return {
        module: ModuleTargets(leaves.get("weight"), leaves.get("bias"))
        for module, leaves in parts.items()
    }


def _own_names(module: ModuleTargets) -> Iterator[str]:
    """Yield the model's own name of a module whose storage holds its weight and nothing else."""
    weight = module.weight
    if weight and weight.rows is None and weight.target_key.endswith(".weight"):
        yield weight.target_key.removesuffix(".weight")


def _check_distinct(name: str, modules: tuple[ModuleTargets, ...]) -> None:
    targets = [target for module in modules if (target := module.weight or module.bias)]
    if len({target.component for target in targets}) < len(targets):
        raise LoraError(
            "Two modules of this model have the same name in LoRA files.",
            {"Name": name, "Modules": ", ".join(target.target_key for target in targets)},
            "rename one of them in the model; no LoRA can tell them apart.",
        )
