"""What GET /object_info says about a node, in the order of the canvas."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ...lora_core.errors import LoraError
from .graph import Json

Options = Mapping[str, Json]


@dataclass(frozen=True)
class InputSpec:
    """One declared input; ``widget_type`` is what decides on its widget."""

    name: str
    type: str
    options: Options = field(default_factory=dict)

    @property
    def widget_type(self) -> str:
        """The type of the widget, where it differs from the socket's."""
        return self.options.get("widgetType") or self.type


@dataclass(frozen=True)
class NodeDefinition:
    """A node class: inputs in the order of the canvas, and outputs as (name, type)."""

    name: str
    title: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[tuple[str, str], ...]
    core: bool = False


Definitions = dict[str, NodeDefinition]


def read_definitions(object_info: Mapping[str, Json], names: set[str]) -> Definitions:
    """Definitions of those of ``names`` that the server knows.

    Raises:
        LoraError: an entry is not in the form of GET /object_info.
    """
    found: Definitions = {}
    for name in names & object_info.keys():
        try:
            found[name] = _read_definition(name, object_info[name])
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise LoraError(
                f"The description of the node {name} cannot be read.",
                {"Cause": f"{type(error).__name__}: {error}"},
                "give the answer of GET /object_info.",
            ) from error
    return found


def _read_definition(name: str, info: Mapping[str, Json]) -> NodeDefinition:
    required = dict(info["input"].get("required") or {})
    optional = dict(info["input"].get("optional") or {})
    required.update(_browser_inputs(name, required))
    outputs, output_names = info.get("output") or [], info.get("output_name") or []
    return NodeDefinition(
        name,
        info.get("display_name") or name,
        tuple(_ordered(required, optional, info.get("input_order") or {})),
        tuple(
            (output_names[slot] if slot < len(output_names) else str(kind), _output_type(kind))
            for slot, kind in enumerate(outputs)
        ),
        str(info.get("python_module", "")).partition(".")[0] != "custom_nodes",
    )


def _browser_inputs(name: str, required: Mapping[str, Json]) -> Mapping[str, Json]:
    """Inputs that the canvas adds to core's file nodes: players, previews, upload buttons."""
    added: dict[str, Json] = {}
    # ComfyUI frontend: Comfy.AudioWidget, Comfy.UploadAudio, Comfy.UploadImage, Comfy.SaveGLB and
    # Comfy.Preview3D (1.47).
    if name in ("SaveGLB", "Preview3D"):
        added["image"] = ["PREVIEW_3D", {}]
    if name in _AUDIO_NODES:
        added["audioUI"] = ["AUDIO_UI", {}]
    specs = {key: read_input(key, value) for key, value in required.items()}
    if "audio" in specs and specs["audio"].options.get("audio_upload") is True:
        added["upload"] = ["AUDIOUPLOAD", {}]
    for spec in specs.values():
        if spec.type == "COMBO" and any(spec.options.get(kind) is True for kind in _UPLOADS):
            added["upload"] = ["IMAGEUPLOAD", {}]
            break
    return added


# ComfyUI frontend: widgets whose values the browser makes when it queues (1.47).
BROWSER_ONLY = frozenset(
    (
        *("Load3D", "Load3DAdvanced", "Preview3DAdvanced", "PreviewGaussianSplat"),
        *("PreviewPointCloud", "Save3DAdvanced", "SaveGaussianSplat", "SavePointCloud"),
        *("WebcamCapture", "RecordAudio", "CustomCombo"),
    )
)
_AUDIO_NODES = frozenset(
    ["LoadAudio", "SaveAudio", "PreviewAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced"]
)
_UPLOADS = ("image_upload", "video_upload", "animated_image_upload")


def _ordered(
    required: Mapping[str, Json], optional: Mapping[str, Json], order: Mapping[str, Json]
) -> Iterator[InputSpec]:
    names = [name for name in order.get("required") or () if name in required]
    names += [name for name in order.get("optional") or () if name in optional]
    declared = {**required, **optional}
    for name in dict.fromkeys([*names, *declared]):
        yield read_input(name, declared[name])


def read_input(name: str, raw: Json) -> InputSpec:
    """An input from ``[type, options]``; a list of choices in place of a type is a COMBO."""
    kind, options = raw[0], dict(raw[1] or {}) if len(raw) > 1 else {}
    if isinstance(kind, list | tuple):
        return InputSpec(name, "COMBO", {**options, "options": list(kind)})
    return InputSpec(name, kind, options)


def _output_type(kind: Json) -> str:
    if isinstance(kind, list | tuple):
        return "COMBO"
    # ComfyUI frontend: an output that follows its inputs starts as any type (1.47).
    return "*" if kind == "COMFY_MATCHTYPE_V3" else kind
