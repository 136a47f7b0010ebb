"""Which UNet and text encoders a state dict holds, and where."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import LoraError, UnsupportedFormatError
from .target import Target
from .text_encoder import hugging_face_targets, open_clip_targets
from .unet import DIFFUSERS_ROOTS, LDM_ROOTS, ldm_modules_of_diffusers

Shapes = Mapping[str, tuple[int, ...]]

_UNET_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
_WIDTH_TO_COMFY = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
_LATER = {
    "double_blocks.0.": "Flux",
    "single_transformer_blocks.0.": "Flux",
    "joint_blocks.0.": "SD3",
    "attn.add_q_proj.": "SD3",
    "t5xxl.": "SD3 or Flux",
    "text_encoder_3.": "SD3",
}


@dataclass(frozen=True, slots=True)
class _Place:
    """One place where a text encoder can lie in a state dict."""

    component: str
    prefix: str
    is_open_clip: bool = False


_TEXT_ENCODER_PLACES = (
    _Place("te1", "cond_stage_model.transformer."),
    _Place("te1", "cond_stage_model.model.", is_open_clip=True),
    _Place("te1", "conditioner.embedders.0.transformer."),
    _Place("te1", "conditioner.embedders.0.model.", is_open_clip=True),
    _Place("te2", "conditioner.embedders.1.model.", is_open_clip=True),
    _Place("te1", "clip_l.transformer."),
    _Place("te1", "clip_h.transformer."),
    _Place("te2", "clip_g.transformer."),
    _Place("te1", "text_encoders.clip_l.transformer."),
    _Place("te1", "text_encoders.clip_h.transformer."),
    _Place("te2", "text_encoders.clip_g.transformer."),
    _Place("te1", "text_encoder."),
    _Place("te2", "text_encoder_2."),
    _Place("te1", ""),
)


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """One text encoder of a model.

    Attributes:
        role: How LoRA files number it: ``"te1"``, ``"te2"``, or ``"te2 alone"`` for a CLIP-G
            without a first encoder (the SDXL refiner), whose component is ``"te1"``.
        comfy: ComfyUI's name for it: ``clip_l``, ``clip_h`` or ``clip_g``.
        targets: Its weights.
    """

    role: str
    comfy: str
    targets: tuple[Target, ...]


def refuse_later_models(shapes: Shapes) -> None:
    """Raise UnsupportedFormatError for a model that is known but comes in a later version."""
    for name in shapes:
        for mark, model in _LATER.items():
            if mark in name:
                raise UnsupportedFormatError(
                    f"This is a {model} model; support for it comes in a later version.",
                    {"Recognised by": name},
                    "apply the LoRA inside ComfyUI, which knows this model.",
                )


def nothing_found(shapes: Shapes) -> LoraError:
    """Give the error for a state dict with neither a UNet nor a text encoder."""
    places = [f"{prefix}input_blocks.0.0.weight" for prefix in _UNET_PREFIXES]
    places += [f"{prefix}conv_in.weight" for prefix in ("unet.", "")]
    places += [f"{place.prefix}..." for place in _TEXT_ENCODER_PLACES if place.prefix]
    return LoraError(
        "No Stable Diffusion UNet or text encoder was found in this model.",
        {
            "Looked for": ", ".join(places),
            "Found": f"{len(shapes)} names: {', '.join(list(shapes)[:3])}",
        },
        "use an SD 1.5, SD 2.x or SDXL model.",
    )


def unet_targets(shapes: Shapes) -> tuple[Target, ...]:
    """List the weights of the UNet, in either naming; none when there is no UNet."""
    for prefix in _UNET_PREFIXES:
        if {f"{prefix}input_blocks.0.0.weight", f"{prefix}out.2.weight"} <= shapes.keys():
            names = _names_below(shapes, prefix, LDM_ROOTS)
            return tuple(Target(prefix + n, shapes[prefix + n], "unet", n) for n in names)
        if {f"{prefix}conv_in.weight", f"{prefix}conv_out.weight"} <= shapes.keys():
            return tuple(_diffusers_targets(shapes, prefix))
    return ()


def _names_below(shapes: Shapes, prefix: str, roots: frozenset[str]) -> list[str]:
    """List the weights and biases below a prefix; quantised models have other tensors beside."""
    names = [name[len(prefix) :] for name in shapes if name.startswith(prefix)]
    return [
        name
        for name in names
        if name.endswith((".weight", ".bias")) and name.split(".", 1)[0] in roots
    ]


def _diffusers_targets(shapes: Shapes, prefix: str) -> Iterator[Target]:
    names = [name.rpartition(".") for name in _names_below(shapes, prefix, DIFFUSERS_ROOTS)]
    ldm = ldm_modules_of_diffusers(dict.fromkeys(module for module, _, _ in names))
    for module, _, leaf in names:
        key = f"{prefix}{module}.{leaf}"
        yield Target(key, shapes[key], "unet", f"{ldm.get(module, module)}.{leaf}")


def text_encoders(shapes: Shapes) -> list[TextEncoder]:
    """List the text encoders; a lone one has the component ``te1`` whatever its place."""
    found: dict[str, tuple[_Place, tuple[Target, ...]]] = {}
    for place in _TEXT_ENCODER_PLACES:
        targets = _targets_at(shapes, place, place.component)
        if targets:
            found[place.component] = (place, targets)
    if len(found) == 2:
        te1, te2 = found["te1"][1], found["te2"][1]
        return [TextEncoder("te1", "clip_l", te1), TextEncoder("te2", "clip_g", te2)]
    return [_alone(place, _targets_at(shapes, place, "te1")) for place, _ in found.values()]


def _targets_at(shapes: Shapes, place: _Place, component: str) -> tuple[Target, ...]:
    read = open_clip_targets if place.is_open_clip else hugging_face_targets
    return tuple(read(shapes, place.prefix, component))


def _alone(place: _Place, targets: tuple[Target, ...]) -> TextEncoder:
    widths = {target.canonical: target.shape[0] for target in targets}
    comfy = _WIDTH_TO_COMFY.get(widths.get("text_model.final_layer_norm.weight", 0), "clip_l")
    if place.component == "te2" or comfy == "clip_g":
        return TextEncoder("te2 alone", "clip_g", targets)
    return TextEncoder("te1", comfy, targets)
