"""The name of each trained module in each form of file."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from ...lora_core.binding import NameTable
from ...lora_core.errors import LoraError
from ...lora_core.models.names import flat
from ...lora_core.models.target import ModuleTargets, Target
from ...lora_core.models.unet import diffusers_modules_of_ldm

_TEXT_ROOTS = ("text_model.", "text_projection")
_PEFT = "base_model.model."


class ExportTable(NameTable, Protocol):
    """What naming needs to know of a model: ``ModelTable``, or a host's table of names.

    Attributes:
        family: A name of ``BASES``, or None.
        targets: Every weight, where the architecture is one of ``lora_core.models``; else none.
    """

    @property
    def family(self) -> str | None: ...  # noqa: D102

    @property
    def targets(self) -> tuple[Target, ...]: ...  # noqa: D102


class OneComponent:
    """A table that knows one component alone; PEFT's names do not tell the components apart."""

    def __init__(self, table: NameTable, component: str) -> None:
        self._table = table
        self._component = component
        self.components = frozenset({component})

    def find(self, lora_key: str) -> tuple[ModuleTargets, ...]:
        """See ``NameTable.find``."""
        return tuple(
            module
            for module in self._table.find(lora_key)
            if any(t and t.component == self._component for t in (module.weight, module.bias))
        )


class ModuleNames:
    """The names of one model's modules; each is one that the model's table reads back."""

    def __init__(self, table: ExportTable) -> None:
        modules = {
            _module_of(target): None for target in table.targets if target.component == "unet"
        }
        self._table = table
        self._diffusers = diffusers_modules_of_ldm(modules)
        self._is_xl = any(module.startswith("label_emb.") for module in modules)
        self._is_refiner = (table.family or "").startswith("sdxl-refiner")

    def kohya(self, target: Target) -> str:
        """The name kohya gives, or ComfyUI's generic form for a model that kohya has no name for.

        Source: kohya sd-scripts: diffusers' module names for SD 1 and 2, ldm's for SDXL.

        Raises:
            LoraError: the table does not read such a name.
        """
        return self._known(target, self._kohya)

    def diffusers(self, target: Target) -> str:
        """The name in a file of a diffusers pipeline, such as ``unet.mid_block.resnets.0.conv1``.

        Raises:
            LoraError: diffusers has no such module.
        """
        return self._known(target, self._pipeline)

    def peft(self, target: Target) -> str:
        """The name in a file of the component's own ``PeftModel``.

        A text encoder has ``text_model.`` in its names where the trained one has it.

        Raises:
            LoraError: diffusers and transformers have no such module.
        """
        return self._known(target, self._plain_peft)

    def _known(self, target: Target, names: Callable[[Target], Iterable[str]]) -> str:
        for name in names(target):
            if any(found.weight == target for found in self._table.find(name)):
                return name
        raise LoraError(
            f"{target.target_key}: no LoRA file of this form can name this weight.",
            {"Tried": ", ".join(names(target)) or "no name is known"},
            "export in kohya's form, or train without this weight.",
        )

    def _kohya(self, target: Target) -> Iterator[str]:
        module = _module_of(target)
        if target.component == "unet":
            if module in self._diffusers:
                yield "lora_unet_" + flat(module if self._is_xl else self._diffusers[module])
            yield f"diffusion_model.{module}"
        elif module.startswith(_TEXT_ROOTS):
            yield self._kohya_text(target.component) + flat(module)
        else:
            yield f"text_encoders.{module}"

    def _kohya_text(self, component: str) -> str:
        """SDXL numbers its encoders; a model of one encoder does not."""
        if component == "te1" and (self._is_refiner or not self._is_xl):
            return "lora_te_"
        return f"lora_{component}_"

    def _pipeline(self, target: Target) -> Iterator[str]:
        module = _module_of(target)
        if target.component == "unet":
            if module in self._diffusers:
                yield f"unet.{self._diffusers[module]}"
        elif module.startswith(_TEXT_ROOTS):
            second = target.component == "te2" or self._is_refiner
            yield f"text_encoder{'_2' if second else ''}.{module}"

    def _plain_peft(self, target: Target) -> Iterator[str]:
        module = _module_of(target)
        if target.component == "unet":
            if module in self._diffusers:
                yield _PEFT + self._diffusers[module]
        elif module.startswith(_TEXT_ROOTS):
            has_root = "text_model." in target.target_key
            yield _PEFT + (module if has_root else module.removeprefix("text_model."))


def _module_of(target: Target) -> str:
    return target.canonical.removesuffix(".weight")
