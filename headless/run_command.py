"""``lora-workbench run``: a graph, sent to ComfyUI."""

import argparse
import asyncio
import importlib.util
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lora_core.errors import LoraError
from ..lora_core.explain import printable
from .comfy_server import started_server
from .messages import write_text
from .progress import graph_bar
from .run_errors import NodeError, RunFailedError
from .set_inputs import Setting, find_settings, node_name, with_settings
from .upload_inputs import local_inputs
from .workflow.convert import to_api
from .workflow.read import GraphFile, read_graph_file

if TYPE_CHECKING:
    from .comfy_client import ComfyClient, RunRecord

HELP = "run a graph in ComfyUI and fetch its results"
DESCRIPTION = """\
Run a graph in a ComfyUI, follow it, and copy its results here.

GRAPH is a .json file from ComfyUI's "Export (API)" or "Save", or a picture that ComfyUI saved.
The paths of the results go to standard output; progress, texts that nodes show, and errors go to
standard error."""
EPILOG = """\
--set takes NODE.INPUT=VALUE; NODE is an id, a title, or a class that occurs once.
Files that image and audio inputs name are uploaded when they lie beside the graph or in the
working folder; a file given with --set may lie anywhere.

examples:
  lora-workbench run graph.json --comfyui http://127.0.0.1:8188
  lora-workbench run picture.png --comfyui ~/ComfyUI --set KSampler.seed=5 --output pictures
  lora-workbench run graph.json --comfyui ~/ComfyUI --comfyui-args=--cpu \\
      --set "Apply LoRAs.rows=<lora:detail:0.8>" --set "Load Image.image=~/photo.jpg" --json

exit codes: 0 done; 1 failed while running; 2 the input is wrong."""

DONE, FAILED, WRONG_INPUT = 0, 1, 2


@dataclass(frozen=True)
class _Outcome:
    """What came of a run."""

    status: str  # "success", "error", "interrupted", "refused" or "lost"
    prompt_id: str | None = None
    outputs: Sequence[dict[str, str]] = ()
    errors: Sequence[NodeError] = ()
    executed: Sequence[str] = ()
    cached: Sequence[str] = ()
    exit_code: int = DONE

    def to_json(self, seconds: float, verbose: bool) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "prompt_id": self.prompt_id,
            "status": self.status,
            "outputs": self.outputs,
            "errors": [error.to_json(verbose) for error in self.errors],
            "executed": self.executed,
            "cached": self.cached,
            "seconds": seconds,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("graph", metavar="GRAPH", type=Path, help="a .json, .png or .webp file")
    parser.add_argument(
        "--comfyui",
        metavar="URL|PATH",
        help="the address of a running ComfyUI, or its folder: then it is started and stopped",
    )
    parser.add_argument(
        "--comfyui-args",
        metavar="ARGS",
        default="",
        help="options for the ComfyUI that is started, e.g. --comfyui-args='--cpu --fp32-unet'",
    )
    parser.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        dest="settings",
        action="append",
        default=[],
        help="change a value of the graph; repeatable",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="where results are written, never over an existing file; default the working folder",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--verbose", action="store_true", help="show the Python traceback of a node's error"
    )


def run(options: argparse.Namespace) -> int:
    """Run the graph; see ``EPILOG`` for the exit code."""
    _require_client()
    graph = read_graph_file(options.graph)
    started = time.perf_counter()
    try:
        with _server(options.comfyui, options.comfyui_args) as address:
            outcome = asyncio.run(_run_at(address, graph, options))
    except RunFailedError as error:
        outcome = _Outcome("lost", errors=[_of_no_node(error)], exit_code=FAILED)
    except KeyboardInterrupt:
        write_text("Interrupted; ComfyUI was told to stop this run.")
        outcome = _Outcome("interrupted", exit_code=FAILED)
    for error in outcome.errors:
        write_text(error.to_text(options.verbose))
    if options.json:
        seconds = round(time.perf_counter() - started, 3)
        print(json.dumps(outcome.to_json(seconds, options.verbose), indent=2))
    else:
        _print_results(outcome.outputs)
    return outcome.exit_code


def _require_client() -> None:
    if importlib.util.find_spec("aiohttp") is None:
        raise LoraError(
            "Talking to ComfyUI needs aiohttp, which is not installed.",
            {},
            'pip install "comfyui-lora-workbench[headless]"',
        )


def _server(target: str | None, arguments: str) -> AbstractContextManager[str]:
    """The address of a running ComfyUI, or of one that runs as long as the context."""
    if target is None:
        raise LoraError(
            "No ComfyUI was named.",
            {"Expected": "--comfyui URL, or --comfyui PATH of a ComfyUI folder"},
            "add --comfyui; running without ComfyUI comes with a later version.",
        )
    if target.startswith(("http://", "https://")):
        return nullcontext(target)
    folder = Path(target).expanduser()
    if folder.is_dir():
        return started_server(folder, arguments)
    raise LoraError(
        "--comfyui names neither an address nor a folder.",
        {"Got": target},
        f"write http://{target} for an address, or the path of ComfyUI's folder.",
    )


async def _run_at(address: str, graph: GraphFile, options: argparse.Namespace) -> _Outcome:
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
                record = await client.run(prompt, workflow, _progress(prompt, show))
        except RefusedError as error:
            return _Outcome("refused", errors=error.errors, exit_code=WRONG_INPUT)
        options.output.mkdir(parents=True, exist_ok=True)
        outputs = [output async for output in _fetch(client, record, options.output)]
    return _outcome(record, outputs)


async def _upload(client: "ComfyClient", setting: Setting, path: Path) -> Setting:
    name = await client.upload(path)
    write_text(f"Uploaded {path} as {name}.")
    return Setting(setting.node, setting.input, name)


def _progress(
    prompt: Mapping[str, Any], show: Callable[[float, str], object]
) -> Callable[[str, Mapping[str, Any]], None]:
    """Turn events into nodes done, in fractions, and the name of the node that runs."""
    cached, shares, running = 0, dict[str, float](), ""

    def watch(event: str, data: Mapping[str, Any]) -> None:
        nonlocal cached, running
        if event == "execution_cached":
            cached = len(data["nodes"])
        elif event == "executing" and data["node"]:
            running = printable(node_name(data["node"], prompt))
        elif event == "progress_state":
            shares.update({node: _share(state) for node, state in data["nodes"].items()})
        show(cached + sum(shares.values()), running)

    return watch


def _share(state: Mapping[str, Any]) -> float:
    """How much of one node is done, 0 to 1."""
    return min(state["value"] / state["max"], 1.0) if state["max"] else 0.0


async def _fetch(
    client: "ComfyClient", record: "RunRecord", folder: Path
) -> AsyncIterator[dict[str, str]]:
    """Copy the results into ``folder``; yield the node, its title, the type, and file or text."""
    for node, shown in record.outputs.items():
        for kind, items in shown.items():
            result = {"node": node, "title": node_name(node, record.prompt), "type": kind}
            for item in items if isinstance(items, list) else ():
                if isinstance(item, str):
                    yield {**result, "text": item}
                elif isinstance(item, dict) and "filename" in item:
                    yield {**result, "file": str(await client.fetch(item, folder))}


def _outcome(record: "RunRecord", outputs: Sequence[dict[str, str]]) -> _Outcome:
    exit_code = WRONG_INPUT if record.refused else DONE
    if record.status != "success" or record.errors:
        exit_code = FAILED
    return _Outcome(
        record.status,
        record.prompt_id,
        outputs,
        [*record.refused, *record.errors],
        record.executed,
        record.cached,
        exit_code,
    )


def _of_no_node(error: LoraError) -> NodeError:
    return NodeError("", "", "", "", type(error).__name__, str(error))


def _print_results(outputs: Sequence[dict[str, str]]) -> None:
    """Paths to standard output, what nodes show as text to standard error."""
    for output in outputs:
        if "file" in output:
            print(output["file"])
        else:
            write_text(f"{output['title']} (node {output['node']}):\n{output['text']}")
