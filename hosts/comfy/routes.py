"""What the page asks about LoRA files: answers of ComfyUI's server below ``/lora_workbench``."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

from ...lora_core.errors import LoraError, UnknownChoiceError
from ..lora_files import LoraFiles, LoraNotFoundError
from ..lora_library import Library
from ..lora_library.error_json import error_json
from ..lora_library.listing import list_files
from ..lora_library.sidecars import PICTURE_TYPES, preview_of
from ..lora_library.verdict import unusable
from ..lora_names import posix_name
from ..protocol import LoraChoice

_ROOT = "/lora_workbench"
_ROUTES = ("loras", "lora", "pin", "resolve", "verdict", "blocks", "norms", "preview")
_MODEL_FOLDERS = ("checkpoints", "diffusion_models")
_LARGEST_PICTURE = 16 << 20  # bytes

_Query = Mapping[str, str]
_Answer = Callable[[_Query], "dict[str, Any] | web.StreamResponse"]


def add_routes(routes: Any, files: LoraFiles) -> None:
    """Add the routes to a server's table.

    Args:
        routes: An aiohttp ``RouteTableDef``.
        files: The host's LoRA folders.
    """
    answers = Answers(files)
    # Two copies of the pack in custom_nodes: aiohttp would refuse to start with a route twice.
    taken = {getattr(route, "path", None) for route in routes}
    for name in _ROUTES:
        if f"{_ROOT}/{name}" not in taken:
            routes.get(f"{_ROOT}/{name}")(_handler(getattr(answers, name), answers.folders))


class Answers:
    """One method per route, from a query to JSON; they read files, so run them in a thread.

    Args:
        files: The host's LoRA folders.
    """

    def __init__(self, files: LoraFiles) -> None:
        self._files = files
        self._library = Library()

    def folders(self) -> list[Path]:
        """Every folder whose place on this machine is nobody's business."""
        models = (folder for kind in _MODEL_FOLDERS for folder in _folders(kind))
        return [*self._files.folders(), *models]

    def loras(self, _: _Query) -> dict[str, Any]:
        """All files."""
        return {"loras": list_files(self._files.names(), self._files.folders())}

    def lora(self, query: _Query) -> dict[str, Any]:
        """The facts of one file."""
        return self._library.facts(*self._files.located(_choice(query)))

    def pin(self, query: _Query) -> dict[str, Any]:
        """Size and hash of one file."""
        pinned = self._files.pin(_choice(query))
        return {"name": pinned.name, "size": pinned.size, "sha256": pinned.sha256}

    def resolve(self, query: _Query) -> dict[str, Any]:
        """The file that a row means; a missing one is told, with files that may be meant."""
        choice = _choice(query)
        try:
            return {"name": self._files.resolve(choice)}
        except LoraNotFoundError as error:
            near = self._files.near(choice.name)
            return {"name": None, "near": near, "error": error_json(error, self.folders())}

    def verdict(self, query: _Query) -> dict[str, Any]:
        """Whether one file suits a model; one that is missing, or without a model, is told too."""
        choice = _choice(query)
        try:
            path = self._files.path(choice)
        except LoraError as error:
            return unusable(error_json(error, self.folders())).to_json()
        try:
            model = _model(query)
        except LoraNotFoundError as error:
            return self._library.verdict_without_model(path, error.headline).to_json()
        return self._library.verdict(path, model).to_json()

    def blocks(self, query: _Query) -> dict[str, Any]:
        """What a weighting can name in a model, and what a row's weighting does there."""
        try:
            model = _model(query)
        except LoraNotFoundError:
            model = None
        choice = _choice(query)
        try:
            path = self._files.path(choice)
        except LoraError:  # the model's blocks are known without the file
            path = None
        return self._library.blocks(model, path, query.get("weighting", ""))

    def norms(self, query: _Query) -> dict[str, Any]:
        """How much one file changes each block; its factors are read."""
        return self._library.norms(self._files.path(_choice(query)))

    def preview(self, query: _Query) -> web.StreamResponse:
        """The picture beside one file."""
        name, path = self._files.located(_choice(query))
        picture = preview_of(path)
        if picture is None:
            fix = "put a picture of the same name beside it, ending in .png, .jpg or .webp."
            raise LoraNotFoundError(f"{name} has no picture.", fix=fix)
        size = picture.stat().st_size
        if size > _LARGEST_PICTURE:
            raise LoraError(
                f"The picture {picture.name} is too large.",
                {"Bytes": size, "Most": _LARGEST_PICTURE},
                "save a smaller one.",
            )
        kind = PICTURE_TYPES[picture.suffix]
        headers = {"Content-Type": kind, "X-Content-Type-Options": "nosniff"}
        return web.FileResponse(picture, headers=headers)


def _handler(
    answer: _Answer, folders: Callable[[], list[Path]]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await asyncio.to_thread(_answered, answer, folders, request.query)

    return handle


def _answered(
    answer: _Answer, folders: Callable[[], list[Path]], query: _Query
) -> web.StreamResponse:
    try:
        found = answer(query)
    except LoraError as error:
        status = 404 if isinstance(error, LoraNotFoundError) else 400
        return _refusal(error, folders(), status)
    except (OSError, sqlite3.Error) as error:
        status = 404 if isinstance(error, FileNotFoundError) else 400
        return _refusal(_unreadable(error), folders(), status)
    return found if isinstance(found, web.StreamResponse) else web.json_response(found)


def _refusal(error: LoraError, folders: list[Path], status: int) -> web.Response:
    return web.json_response({"error": error_json(error, folders)}, status=status)


def _unreadable(error: OSError | sqlite3.Error) -> LoraError:
    cause = error.strerror if isinstance(error, OSError) else str(error)
    return LoraError(
        "A file cannot be read.", {"Cause": cause}, "refresh the list, or look at its permissions."
    )


def _choice(query: _Query) -> LoraChoice:
    size = query.get("size")
    if size is not None and not (size.isascii() and size.isdigit() and len(size) < 20):
        raise LoraError("The size is not a number.", {"Got": size}, "give whole bytes.")
    return LoraChoice(
        query.get("name", ""), query.get("sha256") or None, int(size) if size else None
    )


def _model(query: _Query) -> Path | None:
    """Path of the model that is asked about, one that ComfyUI lists; None when none is.

    Raises:
        LoraNotFoundError: there is none of this name.
        LoraError: there is no such folder.
    """
    name, folder = query.get("checkpoint"), query.get("folder", "checkpoints")
    if not name:
        return None
    if folder not in _MODEL_FOLDERS:
        raise UnknownChoiceError("folder of models", folder, _MODEL_FOLDERS)
    listed = {posix_name(known): known for known in folder_paths.get_filename_list(folder)}
    found = listed.get(posix_name(name))
    path = folder_paths.get_full_path(folder, found) if found is not None else None
    if path is None:
        raise LoraNotFoundError(
            f"The model {name} is missing.", {"Folder": folder}, "refresh the list of models."
        )
    return Path(path)


def _folders(kind: str) -> list[Path]:
    return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]
