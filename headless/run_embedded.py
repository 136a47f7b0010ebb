"""A graph, run in this process on diffusers models."""

import argparse
import importlib.util
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lora_core.errors import LoraError
from ..nodes import node_mappings
from .graph import Runner, RunResult, Validation, validate
from .keep_on_interrupt import first_interrupt_keeps
from .messages import write_text
from .new_file import new_file
from .object_info import object_info
from .progress import following, graph_bar
from .run_errors import failure, refusals
from .run_fixes import FIXES_HERE, counted, with_fixes
from .run_outcome import WRONG_INPUT, Outcome, exit_code_of, shown_items
from .set_inputs import Setting, find_settings, with_settings
from .upload_inputs import local_folders, local_inputs
from .user_folder import user_folder
from .workflow.convert import to_api
from .workflow.read import GraphFile

if TYPE_CHECKING:
    from ..hosts.embedded.folders import Folders

_NEEDED = ("diffusers", "transformers", "numpy", "PIL")


def run_embedded(graph: GraphFile, options: argparse.Namespace) -> Outcome:
    """Run a graph without ComfyUI; models lie in ``options.models``.

    Raises:
        LoraError: the graph or a setting is wrong, or a library is missing.
    """
    _require_libraries()
    if not options.models.is_dir():
        raise LoraError(
            "The folder of models does not exist.",
            {"Folder": options.models, "Holds": "checkpoints/ and loras/"},
            "give the folder with --models, or run the graph in ComfyUI with --comfyui.",
        )
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lora-workbench-run-") as scratch:
        return _run(graph, options, Path(scratch))


def missing_libraries() -> list[str]:
    """What the embedded host needs and this Python does not have."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def _require_libraries() -> None:
    missing = missing_libraries()
    if missing:
        raise LoraError(
            "Running a graph without ComfyUI needs libraries that are not installed.",
            {"Missing": ", ".join(missing)},
            'pip install "comfyui-lora-workbench[headless]", or name a ComfyUI with --comfyui.',
        )


def _run(graph: GraphFile, options: argparse.Namespace, scratch: Path) -> Outcome:
    from ..hosts.embedded.folders import Folders
    from ..hosts.embedded.host import EmbeddedHost
    from ..hosts.embedded.nodes import core_mappings

    folders = Folders(
        models=options.models,
        input=scratch / "input",
        output=options.output,
        temp=scratch / "temp",
        user=user_folder(),
    )
    host = EmbeddedHost(folders)
    (core, core_names), (ours, our_names) = core_mappings(host), node_mappings(host)
    classes, names = core | ours, core_names | our_names
    prompt, is_changed = _prepared(graph, options, object_info(classes, names), folders.input)
    valid = validate(prompt, classes)
    answer = {"error": valid.error, "node_errors": valid.node_errors}
    refused = with_fixes(refusals(prompt, answer), prompt, FIXES_HERE)
    if refused:
        write_text(
            counted(
                "A part of the graph is left out" if valid.ok else "The graph cannot be run",
                refused,
            )
        )
    if not valid.ok:
        return Outcome("refused", errors=refused, exit_code=WRONG_INPUT)
    runner = Runner(classes)
    host.report_progress = runner.progress.report
    prompt_id = str(uuid.uuid4())
    # A picture must not carry a workflow that does not make it.
    with first_interrupt_keeps(host.ask_to_keep):
        result = _executed(runner, valid, prompt_id, None if is_changed else graph.workflow)
    errors = [failure(prompt, result.error)] if result.status == "error" and result.error else []
    return Outcome(
        result.status,
        prompt_id,
        list(_results(result, prompt, folders)),
        [*refused, *errors],
        result.executed,
        result.cached,
        exit_code_of(result.status, refused, errors),
    )


def _prepared(
    graph: GraphFile, options: argparse.Namespace, described: Mapping[str, Any], inputs: Path
) -> tuple[dict[str, Any], bool]:
    """The graph in API form with its settings, its pictures brought to ``inputs``.

    Returns:
        The prompt, and whether settings changed it.
    """
    inputs.mkdir()
    prompt = graph.prompt or to_api(graph.workflow, described)
    settings = find_settings(options.settings, prompt, described)
    prompt = with_settings(prompt, settings)
    places = (options.graph.parent, Path())
    uploads = local_inputs(prompt, described, places, settings)
    brought = [_copied(setting, path, inputs) for setting, path in uploads]
    for setting, path in local_folders(prompt, places, settings):
        brought.append(_linked(setting, path, inputs))
    return with_settings(prompt, brought), bool(settings)


def _copied(setting: Setting, path: Path, inputs: Path) -> Setting:
    """Bring a picture into the input folder; the name there is a name of its own."""
    target = new_file(inputs, path.name)
    shutil.copyfile(path, target)
    return Setting(setting.node, setting.input, target.name)


def _linked(setting: Setting, path: Path, inputs: Path) -> Setting:
    """Show a folder of pictures in the input folder; its name decides its captions."""
    place = inputs / f"{setting.node}-{setting.input}"
    place.mkdir()
    link = place / path.resolve().name
    link.symlink_to(path.resolve(), target_is_directory=True)
    return Setting(setting.node, setting.input, f"{place.name}/{link.name}")


def _executed(
    runner: Runner, valid: Validation, prompt_id: str, workflow: Mapping[str, Any] | None
) -> RunResult:
    extra = {"extra_pnginfo": {"workflow": workflow}} if workflow is not None else {}
    with graph_bar(len(valid.prompt)) as show:
        follow = following(valid.prompt, show)
        return runner.run(valid.prompt, prompt_id, extra, valid.outputs, follow)


def _results(
    result: RunResult, prompt: Mapping[str, Any], folders: "Folders"
) -> Iterator[dict[str, str]]:
    """What nodes show; previews are copied out of the temporary folder."""
    for shown, item in shown_items(result.outputs, prompt):
        if isinstance(item, str):
            yield {**shown, "text": item}
            continue
        is_preview = item["type"] == "temp"
        path = (
            (folders.temp if is_preview else folders.output) / item["subfolder"] / item["filename"]
        )
        if is_preview:
            path = Path(shutil.copyfile(path, new_file(folders.output, path.name)))
        yield {**shown, "file": str(path)}
