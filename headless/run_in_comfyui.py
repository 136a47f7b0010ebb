"""A graph, sent to a ComfyUI that runs already or is started for it."""

import argparse
import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..lora_core.errors import LoraError
from .comfy_server import started_server
from .messages import write_text
from .progress import following, graph_bar
from .run_fixes import FIXES_IN_COMFYUI, counted, with_fixes
from .run_outcome import WRONG_INPUT, Outcome, exit_code_of, shown_items
from .set_inputs import Setting, find_settings, with_settings
from .upload_inputs import local_inputs
from .workflow.convert import to_api
from .workflow.read import GraphFile

if TYPE_CHECKING:
    from .comfy_client import ComfyClient, RunRecord

ADDRESSES = ("http://", "https://")
"""How an address of a ComfyUI that runs already begins."""


def run_in_comfyui(graph: GraphFile, options: argparse.Namespace) -> Outcome:
    """Run a graph in the ComfyUI that ``options.comfyui`` names.

    Raises:
        LoraError: the graph, a setting or the address is wrong.
        RunFailedError: ComfyUI could not be reached, or was lost on the way.
    """
    _require_client()
    with _server(options.comfyui, options.comfyui_args) as address:
        return asyncio.run(_run_at(address, graph, options))


def _require_client() -> None:
    if importlib.util.find_spec("aiohttp") is None:
        raise LoraError(
            "Talking to ComfyUI needs aiohttp, which is not installed.",
            {},
            'pip install "comfyui-lora-workbench[headless]"',
        )


def _server(target: str, arguments: str) -> AbstractContextManager[str]:
    """The address of a running ComfyUI, or of one that runs as long as the context."""
    if target.startswith(ADDRESSES):
        return nullcontext(target)
    folder = Path(target).expanduser()
    if folder.is_dir():
        return started_server(folder, arguments)
    raise LoraError(
        "--comfyui names neither an address nor a folder.",
        {"Got": target},
        f"write http://{target} for an address, or the path of ComfyUI's folder.",
    )


async def _run_at(address: str, graph: GraphFile, options: argparse.Namespace) -> Outcome:
    from .comfy_client import RefusedError, connected

    async with connected(address) as client:
        object_info = await client.object_info()
        prompt = graph.prompt or to_api(graph.workflow, object_info)
        settings = find_settings(options.settings, prompt, object_info)
        prompt = with_settings(prompt, settings)
        folders = (options.graph.parent, Path())
        uploads = local_inputs(prompt, object_info, folders, settings)
        prompt = with_settings(prompt, [await _upload(client, *upload) for upload in uploads])
        # A picture must not carry a workflow that does not make it.
        workflow = None if settings else graph.workflow
        try:
            with graph_bar(len(prompt)) as show:
                record = await client.run(prompt, workflow, following(prompt, show))
        except RefusedError as error:
            errors = with_fixes(error.errors, prompt, FIXES_IN_COMFYUI)
            write_text(counted("ComfyUI refused the graph", errors))
            return Outcome("refused", errors=errors, exit_code=WRONG_INPUT)
        options.output.mkdir(parents=True, exist_ok=True)
        outputs = [output async for output in _fetch(client, record, options.output)]
    return _outcome(record, outputs)


async def _upload(client: "ComfyClient", setting: Setting, path: Path) -> Setting:
    name = await client.upload(path)
    write_text(f"Uploaded {path} as {name}.")
    return Setting(setting.node, setting.input, name)


async def _fetch(
    client: "ComfyClient", record: "RunRecord", folder: Path
) -> AsyncIterator[dict[str, str]]:
    """Copy the results into ``folder``; yield what each node shows."""
    for result, item in shown_items(record.outputs, record.prompt):
        if isinstance(item, str):
            yield {**result, "text": item}
        else:
            yield {**result, "file": str(await client.fetch(item, folder))}


def _outcome(record: "RunRecord", outputs: list[dict[str, str]]) -> Outcome:
    refused = with_fixes(record.refused, record.prompt, FIXES_IN_COMFYUI)
    if refused:
        write_text(counted("ComfyUI left a part of the graph out", refused))
    return Outcome(
        record.status,
        record.prompt_id,
        outputs,
        [*refused, *record.errors],
        record.executed,
        record.cached,
        exit_code_of(record.status, refused, record.errors),
    )
