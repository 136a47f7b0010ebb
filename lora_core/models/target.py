"""Where a LoRA's change goes: one view of one stored tensor of the model."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A weight as LoRA files address it, and the stored tensor that holds it.

    Attributes:
        target_key: Name of the storage in the model's own state dict.
        shape: Shape as LoRA files see the weight, ``(out, in, *kernel)`` or ``(n,)``: the storage,
            cut to ``rows``, and turned over when ``transposed``.
        component: ``"unet"``, ``"te1"`` or ``"te2"``; a lone text encoder is ``"te1"``.
        canonical: The same name for every way of storing a model: ldm naming for UNets, Hugging
            Face naming (with ``text_model.``) for text encoders.
        rows: ``(start, stop)`` in dimension 0 of a storage that fuses several weights, or None.
        transposed: The storage is used as ``x @ P``; a delta must be transposed before it is added.
    """

    target_key: str
    shape: tuple[int, ...]
    component: str
    canonical: str
    rows: tuple[int, int] | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class ModuleTargets:
    """The weight and the bias of one module; None where the module has none."""

    weight: Target | None
    bias: Target | None
