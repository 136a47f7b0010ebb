"""``lora-workbench run``: a graph, run here or in ComfyUI."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from ..lora_core.errors import LoraError
from .messages import write_text
from .run_embedded import run_embedded
from .run_errors import NodeError, RunFailedError
from .run_in_comfyui import ADDRESSES, run_in_comfyui
from .run_outcome import FAILED, Outcome
from .workflow.read import read_graph_file

HELP = "run a graph, with or without ComfyUI"
DESCRIPTION = """\
Run a graph, follow it, and put its results here: in this process, on diffusers models, or in the
ComfyUI that --comfyui names.

GRAPH is a .json file from ComfyUI's "Export (API)" or "Save", or a picture that ComfyUI saved.
The paths of the results go to standard output; progress, texts that nodes show, and errors go to
standard error."""
EPILOG = """\
Without --comfyui, --models DIR holds checkpoints/ and loras/, and the graph may use the nodes of
LoRA Workbench and what a LoRA graph needs of ComfyUI's own (loaders, prompts, KSampler, VAE,
pictures). Any other node needs --comfyui.

--set takes NODE.INPUT=VALUE; NODE is an id, a title, or a class that occurs once.
Files that image and audio inputs name are uploaded when they lie beside the graph or in the
working folder; a file given with --set may lie anywhere.

examples:
  lora-workbench run graph.json --models ~/models --output pictures
  lora-workbench run graph.json --comfyui http://127.0.0.1:8188
  lora-workbench run picture.png --comfyui ~/ComfyUI --set KSampler.seed=5 --output pictures
  lora-workbench run graph.json --comfyui ~/ComfyUI --comfyui-args=--cpu \\
      --set "Apply LoRAs.rows=<lora:detail:0.8>" --set "Load Image.image=~/photo.jpg" --json

exit codes: 0 done; 1 failed while running; 2 the input is wrong."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("graph", metavar="GRAPH", type=Path, help="a .json, .png or .webp file")
    parser.add_argument(
        "--models",
        metavar="DIR",
        type=Path,
        default=Path("models"),
        help="folder with checkpoints/ and loras/, without --comfyui; default models",
    )
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
    if options.output.is_file():
        raise LoraError(
            "--output names a file; results are written into a folder.",
            {"Got": options.output},
            "name a folder, or leave --output out for the working folder.",
        )
    if options.comfyui_args and (options.comfyui or "http://").startswith(ADDRESSES):
        raise LoraError(
            "--comfyui-args would do nothing: no ComfyUI is started.",
            {"--comfyui-args": options.comfyui_args, "--comfyui": options.comfyui or "not given"},
            "name ComfyUI's folder with --comfyui, or leave it out.",
        )
    graph = read_graph_file(options.graph)
    started = time.perf_counter()
    run_graph = run_embedded if options.comfyui is None else run_in_comfyui
    try:
        outcome = run_graph(graph, options)
    except RunFailedError as error:
        outcome = Outcome("lost", errors=[_of_no_node(error)], exit_code=FAILED)
    except KeyboardInterrupt:
        outcome = Outcome("interrupted", exit_code=FAILED)
    if outcome.status == "interrupted":
        write_text("Interrupted; this run was stopped.")
    for error in outcome.errors:
        write_text(error.to_text(options.verbose))
    if options.json:
        seconds = round(time.perf_counter() - started, 3)
        print(json.dumps(outcome.to_json(seconds, options.verbose), indent=2))
    else:
        _print_results(outcome.outputs)
    return outcome.exit_code


def _of_no_node(error: LoraError) -> NodeError:
    return NodeError("", "", "", "", type(error).__name__, str(error))


def _print_results(outputs: Sequence[dict[str, str]]) -> None:
    """Paths to standard output, what nodes show as text to standard error."""
    for output in outputs:
        if "file" in output:
            print(output["file"])
        else:
            write_text(f"{output['title']} (node {output['node']}):\n{output['text']}")
