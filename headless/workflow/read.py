"""Graph files: JSON in either form, and pictures that ComfyUI saved with their graph."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...lora_core.errors import DamagedFileError, LoraError, UnsupportedFormatError
from .graph import Json

MAX_BYTES = 32_000_000
_PICTURES = (".png", ".webp")


@dataclass(frozen=True)
class GraphFile:
    """What a file holds: a prompt (API form), a workflow (UI form), or both.

    A picture has both: ``prompt`` is what was executed, so that is the one to run; ``workflow`` is
    the canvas, where nodes may be muted and seeds already changed.
    """

    prompt: dict[str, Json] | None
    workflow: dict[str, Json] | None
    source: str


def read_graph_file(path: str | Path) -> GraphFile:
    """Read a graph from .json, .png or .webp; the two forms of JSON are told apart by content.

    Raises:
        LoraError: there is no such file, it is damaged, too large, or holds no graph.
    """
    path = Path(path)
    if not path.is_file():
        raise LoraError(f"There is no graph file {path}.", fix="check the path.")
    if path.suffix.lower() in _PICTURES:
        return _from_picture(path)
    return _from_json(path)


def _from_json(path: Path) -> GraphFile:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _too_large(path.name, size)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedFileError(
            f"{path.name} is not a graph: it is not text.", fix="give a .json, .png or .webp file."
        ) from error
    data = _parse(text, path.name)
    if is_workflow(data):
        return GraphFile(None, data, str(path))
    if is_prompt(data):
        return GraphFile(data, None, str(path))
    if isinstance(data, dict) and is_prompt(data.get("prompt")):  # the body of POST /prompt
        return GraphFile(data["prompt"], None, str(path))
    raise UnsupportedFormatError(
        f"{path.name} is JSON, but not a ComfyUI graph.",
        {"Holds": _shape_of(data)},
        "save it in ComfyUI with Workflow > Save or Workflow > Export (API).",
    )


def is_workflow(data: Json) -> bool:
    """Whether JSON data has the UI form."""
    return isinstance(data, dict) and isinstance(data.get("nodes"), list)


def is_prompt(data: Json) -> bool:
    """Whether JSON data has the API form: node ids with class_type and inputs."""
    return isinstance(data, dict) and bool(data) and all(map(_is_prompt_node, data.values()))


def _is_prompt_node(node: Json) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _from_picture(path: Path) -> GraphFile:
    texts = _picture_texts(path)
    data = {name: _parse(text, f"the {name} in {path.name}") for name, text in texts.items()}
    prompt, workflow = data.get("prompt"), data.get("workflow")
    graph = GraphFile(
        prompt if is_prompt(prompt) else None,
        workflow if is_workflow(workflow) else None,
        str(path),
    )
    if graph.prompt is None and graph.workflow is None:
        raise UnsupportedFormatError(
            f"{path.name} is a picture without a graph.",
            {"Texts in it": ", ".join(texts) or "none"},
            "give a picture as ComfyUI saved it; other programs drop the graph when they save.",
        )
    return graph


def _picture_texts(path: Path) -> dict[str, str]:
    """The texts ``prompt`` and ``workflow`` of a picture; the pixels are not decoded."""
    from PIL import Image  # `--help`, `inspect` and `merge` need no pictures

    try:
        with Image.open(path, formats=("PNG", "WEBP")) as picture:
            texts = {str(name): value for name, value in picture.info.items()}
            # ComfyUI: WebP keeps "prompt:{...}" and "workflow:{...}" as EXIF strings (0.30).
            for value in picture.getexif().values():
                if isinstance(value, str):
                    name, _, text = value.partition(":")
                    texts[name] = text
    # Pillow raises all of these on damaged and oversized pictures.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DamagedFileError(
            f"{path.name} cannot be read as a picture.",
            {"Cause": str(error) or type(error).__name__},
            "give the file as ComfyUI saved it.",
        ) from error
    names = ("prompt", "workflow")
    return {name: texts[name] for name in names if isinstance(texts.get(name), str)}


def _parse(text: str, what: str) -> Json:
    if len(text) > MAX_BYTES:
        raise _too_large(what, len(text))
    try:
        # NaN and Infinity are not JSON, but ComfyUI writes them; the canvas reads null.
        return json.loads(text, parse_constant=_null)
    except json.JSONDecodeError as error:
        raise DamagedFileError(
            f"{what} is not JSON.",
            {"Cause": error.msg, "At": f"line {error.lineno}, column {error.colno}"},
            "give the file as ComfyUI saved it.",
        ) from error
    except RecursionError as error:
        raise DamagedFileError(
            f"{what} is nested too deeply to be a graph.", fix="give the file as ComfyUI saved it."
        ) from error


def _null(name: str) -> None:
    """What NaN, Infinity and -Infinity become."""


def _too_large(what: str, size: int) -> LoraError:
    return LoraError(
        f"{what} is too large for a graph.",
        {"Size": f"{size:,} bytes", "Limit": f"{MAX_BYTES:,} bytes"},
        "give a graph as ComfyUI saved it.",
    )


def _shape_of(data: Json) -> str:
    if isinstance(data, Mapping):
        return "an object with " + (", ".join(map(repr, list(data)[:5])) or "nothing in it")
    return f"a {type(data).__name__}"
