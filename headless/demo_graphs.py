"""The demo's pictures: the example graphs, run without ComfyUI on a small model of shapes."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..hosts.embedded.folders import Folders
from ..hosts.embedded.host import EmbeddedHost
from ..hosts.embedded.nodes import core_mappings
from ..lora_core.errors import LoraError
from ..nodes import node_mappings
from .demo_model.pictures import SIZE
from .demo_model.write import EXAMPLE_NAMES, write_demo_checkpoint
from .graph import Runner, validate
from .run_errors import failure, refusals
from .user_folder import user_folder

EXAMPLES = Path(__file__).parents[1] / "examples" / "api"
CAPTIONS = (
    "a red circle on a blue background",
    "a yellow star on a purple background",
    "a green house on an orange background",
    "a pink moon on a blue background",
)
SEED, STEPS, CFG, PER_CAPTION = 4, 16, 4.0, 2
_ELSEWHERE = {"train-lora": "wants pictures of yours; `demo --train` draws some"}
_NAMED = re.compile(rf"\b({'|'.join(EXAMPLE_NAMES)})\b")

Inputs = Mapping[str, Mapping[str, Any]]
"""New values of a graph: node class to input to value."""


@dataclass(frozen=True)
class Column:
    """One column of the grid.

    Attributes:
        label: Over the column.
        example: Name of the graph.
        inputs: Its values.
        save: Title of the node whose pictures are shown.
    """

    label: str
    example: str
    inputs: Inputs = field(default_factory=dict)
    save: str = "Save Image"


def _load_and_apply(neon: float, mosaic: float) -> Inputs:
    rows = json.dumps([{"name": "mosaic", "model": mosaic, "clip": mosaic}])
    loaded = {"strength_model": neon, "strength_clip": neon}
    return {"LoraWorkbenchLoad": loaded, "LoraWorkbenchApply": {"rows": rows}}


_FULL_STACK = json.dumps([{"name": name} for name in ("neon", "mosaic")])
COLUMNS = (
    Column("base", "load-and-apply", _load_and_apply(0, 0)),
    Column("neon", "load-and-apply", _load_and_apply(1, 0)),
    Column("mosaic", "load-and-apply", _load_and_apply(0, 1)),
    Column("both", "load-and-apply", _load_and_apply(1, 1)),
    Column(
        "both, neon in\nIN and M only",
        "stack-weight-apply",
        {
            "LoraWorkbenchStack": {"rows": _FULL_STACK},
            "LoraWorkbenchWeight": {"weighting": "OUT00-11=0", "which": "neon"},
        },
    ),
    Column(
        "neon merged",
        "merge-unmerge",
        {"LoraWorkbenchLoad": {"strength_model": 1.0, "strength_clip": 1.0}},
        "Merged",
    ),
    Column("un-merged", "merge-unmerge", save="Base again"),
)


@dataclass(frozen=True)
class Drawn:
    """What was made.

    Attributes:
        pictures: By column label, in the order of the captions, all of each caption's batch.
        executed: Nodes that ran, in all graphs.
        cached: Nodes whose results were known.
        others: Example name to what came of it, for the examples that are no column.
    """

    pictures: Mapping[str, Sequence[Image.Image]]
    executed: int
    cached: int
    others: Mapping[str, str]


def draw(scratch: Path) -> Drawn:
    """Run the examples; results of the graphs themselves go to ``scratch``.

    Raises:
        LoraError: a graph was refused or failed.
    """
    models = user_folder() / "demo"
    write_demo_checkpoint(models)
    parts = {name: scratch / name for name in ("input", "output", "temp", "user")}
    host = EmbeddedHost(Folders(models, **parts))
    graphs = _Graphs(host)
    pictures: dict[str, list[Image.Image]] = {column.label: [] for column in COLUMNS}
    for caption in CAPTIONS:
        for column in COLUMNS:
            pictures[column.label] += graphs.pictures(column, caption)
    shown = {column.example for column in COLUMNS}
    others = {
        path.stem: graphs.outcome(path.stem)
        for path in sorted(EXAMPLES.glob("*.json"))
        if path.stem not in shown
    }
    return Drawn(pictures, graphs.executed, graphs.cached, others)


class _Graphs:
    """Example graphs on one host, with one cache."""

    def __init__(self, host: EmbeddedHost) -> None:
        self._classes = core_mappings(host)[0] | node_mappings(host)[0]
        self._runner = Runner(self._classes)
        self.executed = self.cached = 0

    def pictures(self, column: Column, caption: str) -> list[Image.Image]:
        """The pictures of one column for one caption."""
        prompt = adapted(column.example, caption, column.inputs)
        results = self._run(prompt)
        (node,) = [key for key, entry in prompt.items() if entry["_meta"]["title"] == column.save]
        (batch,) = results[node][0]
        return [_picture(pixels) for pixels in batch]

    def outcome(self, example: str) -> str:
        """Run a graph that is no column; what came of it in words."""
        if example in _ELSEWHERE:
            return _ELSEWHERE[example]
        prompt = adapted(example, CAPTIONS[0], {})
        try:
            self._run(prompt)
        except LoraError as error:
            return error.headline
        return f"{len(prompt)} nodes"

    def _run(self, prompt: Mapping[str, Any]) -> Mapping[str, Sequence[list[Any]]]:
        valid = validate(prompt, self._classes)
        refused = refusals(prompt, {"error": valid.error, "node_errors": valid.node_errors})
        if refused:
            raise LoraError(f"needs ComfyUI ({refused[0].message.splitlines()[0]})")
        result = self._runner.run(valid.prompt, "demo", {}, valid.outputs)
        self.executed += len(result.executed)
        self.cached += len(result.cached)
        if result.status == "error" and result.error is not None:
            raise LoraError(failure(prompt, result.error).to_text(verbose=False))
        if result.status == "interrupted":
            raise KeyboardInterrupt
        return result.results


def adapted(example: str, caption: str, inputs: Inputs) -> dict[str, Any]:
    """An example graph with the demo's names, size and caption, and then with ``inputs``."""
    text = (EXAMPLES / f"{example}.json").read_text(encoding="utf-8")
    prompt: dict[str, Any] = json.loads(_NAMED.sub(lambda found: EXAMPLE_NAMES[found[0]], text))
    common: dict[str, Mapping[str, Any]] = {
        "EmptyLatentImage": {"width": SIZE, "height": SIZE, "batch_size": PER_CAPTION},
        "KSampler": {"seed": SEED, "steps": STEPS, "cfg": CFG},
    }
    for entry in prompt.values():
        kind = entry["class_type"]
        entry["inputs"] |= {**common.get(kind, {}), **inputs.get(kind, {})}
        if kind == "CLIPTextEncode":
            entry["inputs"]["text"] = _text(entry, caption)
        if kind == "LoraWorkbenchPrompt":
            entry["inputs"]["text"] = f"{caption} <lora:neon:0.8>"
    return prompt


def _text(entry: Mapping[str, Any], caption: str) -> Any:  # noqa: ANN401
    """The caption for positive prompts, nothing for negative ones; links stay."""
    text = entry["inputs"]["text"]
    if not isinstance(text, str):
        return text
    return "" if "Negative" in entry["_meta"]["title"] else caption


def _picture(pixels: Tensor) -> Image.Image:
    levels = (pixels.cpu().float().numpy() * 255).clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels)
