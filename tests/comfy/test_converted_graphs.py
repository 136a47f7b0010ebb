"""Graphs of other packs' LoRA nodes and what the canvas makes of them: equal patched weights.

The oracle is ComfyUI's own LoraLoader. Packs that are not here are restated by what their nodes do
with their saved values, each in a few lines of calls of LoraLoader; read in the packs' sources:
rgthree-comfy py/power_lora_loader.py and src_web/comfyui/power_lora_loader.ts (serializeValue),
Comfyroll nodes/nodes_lora.py, Efficiency's TSC_LoRA_Stacker, Lora Manager py/nodes/lora_loader.py
and lora_stacker.py.
"""

import json
import os
import shutil
import subprocess

import pytest
import torch

from lora_workbench.headless.workflow.convert import to_api

from ..workflow_examples import INPUT_END, canvas, checkpoint, lora, node, socket, subgraph
from .checkpoints import SLIM, lora_targets, write_lora
from .comfy_source import REPOSITORY
from .conftest import PromptRejectedError
from .test_published_files import BOUND

A, B, C = NAMES = ("conv_a.safetensors", "inks/conv_b.safetensors", "conv_c.safetensors")
MODEL_CLIP = ("MODEL", "CLIP")
BYPASSED, MUTED = 4, 2
CONVERT = """
import { readFileSync } from "node:fs"
import { convertLoras } from "MODULE"
process.stdout.write(JSON.stringify(convertLoras(JSON.parse(readFileSync(0, "utf8"))).workflow))
"""


class Probe:
    """An output node that keeps what it is given; ``kept`` is cleared by each test."""

    CATEGORY, FUNCTION, OUTPUT_NODE, RETURN_TYPES = "tests", "keep", True, ()
    kept: dict = {}  # noqa: RUF012  ComfyUI makes its own instances

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {"model": ("MODEL",)},
            "optional": {"clip": ("CLIP",)},
            "hidden": {"place": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, **_):  # noqa: N802
        return float("nan")  # runs each time

    def keep(self, model, place, clip=None):
        self.kept[place.rpartition(":")[2]] = (model, clip)
        return ()


def probe(number, model, clip=None):
    return node(number, "TestProbe", [("model", "MODEL", model), ("clip", "CLIP", clip)])


def model_only(number, model, name, strength, **more):
    return node(
        number,
        "LoraLoaderModelOnly",
        [("model", "MODEL", model)],
        ("MODEL",),
        [name, strength],
        **more,
    )


@pytest.fixture(scope="module")
def convert():
    """What the canvas's command makes of a workflow."""
    program = shutil.which("node")
    if program is None:
        message = "there is no node on this machine"
        if os.environ.get("LORA_WORKBENCH_CI") or os.environ.get("CI"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    script = CONVERT.replace("MODULE", (REPOSITORY / "web/convert/convert.js").as_uri())

    def convert(workflow):
        command = [program, "--input-type=module", "-e", script]
        text = json.dumps(workflow)
        ended = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        return json.loads(ended.stdout)

    return convert


@pytest.fixture(scope="module", autouse=True)
def _loras(comfy):
    for seed, name in enumerate(NAMES):
        path = comfy.loras_dir / name
        path.parent.mkdir(exist_ok=True)
        write_lora(path, lora_targets(SLIM), rank=4, seed=seed, alpha=2.0)


@pytest.fixture(scope="module")
def probed(comfy, slim_checkpoint):
    """Run a workflow in ComfyUI; return (MODEL, CLIP) by the id of each probe."""
    import nodes

    executor = comfy.new_executor()  # the checkpoint is read once

    def probed(workflow):
        Probe.kept.clear()
        info = {name: comfy.object_info(name) for name in nodes.NODE_CLASS_MAPPINGS}
        prompt = to_api(workflow, info)
        for entry in prompt.values():
            if entry["class_type"] == "CheckpointLoaderSimple":
                entry["inputs"]["ckpt_name"] = slim_checkpoint
        executor.run(prompt)
        return dict(Probe.kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestProbe", Probe)
        yield probed


def patchers_of(model, clip):
    return [model] if clip is None else [model, clip.patcher]


def weights_of(patchers, keys):
    """Load as a sampler does; copies of the weights of ``keys``."""
    from comfy import model_management

    copies = {}
    with torch.inference_mode():
        for patcher, wanted in zip(patchers, keys, strict=True):
            model_management.load_models_gpu([patcher])
            state = patcher.model.state_dict()
            copies |= {key: state[key].clone() for key in wanted}
        model_management.unload_all_models()
    return copies


def assert_equal_weights(theirs, ours):
    """Some weights changed, and to the same values but for core's rounding after each LoRA."""
    theirs, ours = patchers_of(*theirs), patchers_of(*ours)
    keys = [a.patches.keys() | b.patches.keys() for a, b in zip(theirs, ours, strict=True)]
    expected, found = weights_of(theirs, keys), weights_of(ours, keys)
    base = {}
    for patcher in theirs:
        base |= patcher.model.state_dict()
    for key, weight in expected.items():
        delta = (weight - base[key]).abs().max()
        ulp = torch.nextafter(weight.abs(), torch.tensor(torch.inf)) - weight.abs()
        assert bool(((found[key] - weight).abs() <= BOUND * delta + ulp).all()), key
    assert any(bool((weight != base[key]).any()) for key, weight in expected.items())


def types_of(workflow):
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", ())]
    return sorted(item["type"] for graph in graphs for item in graph["nodes"])


# --- core's loaders -------------------------------------------------------------------------


def chain(*middle, last, **extra):
    """The checkpoint as node 1, loaders, and a probe (node 9) of ``last``."""
    return canvas(checkpoint(1), *middle, probe(9, (last, 0), (last, 1)), **extra)


def two_consumers():
    return canvas(
        checkpoint(1),
        lora(2, (1, 0), (1, 1), A, (0.8, 0.3)),
        lora(3, (2, 0), (2, 1), B, (-0.5, 1)),
        probe(8, (2, 0), (2, 1)),
        probe(9, (3, 0), (3, 1)),
    )


def clip_of_the_middle():
    """The text encoder of the first loader is used by itself, and by the second one."""
    return canvas(
        checkpoint(1),
        lora(2, (1, 0), (1, 1), A, (0.8, 0.3)),
        lora(3, (2, 0), (1, 1), B, (1, 0.5)),
        probe(9, (3, 0), (2, 1)),
        probe(8, (3, 0), (3, 1)),
    )


def in_a_subgraph():
    inside = subgraph(
        "conv",
        [
            lora(11, (INPUT_END, 0), (INPUT_END, 1), A, (0.8, 0.3)),
            lora(12, (11, 0), (11, 1), B, (0.5, -1)),
        ],
        [("model", "MODEL"), ("clip", "CLIP")],
        [("MODEL", "MODEL", (12, 0)), ("CLIP", "CLIP", (12, 1))],
    )
    inputs = [("model", "MODEL", (1, 0)), ("clip", "CLIP", (1, 1))]
    again = [("model", "MODEL", (2, 0)), ("clip", "CLIP", (2, 1))]
    hosts = [node(2, "conv", inputs, MODEL_CLIP), node(3, "conv", again, MODEL_CLIP)]
    return chain(*hosts, last=3, subgraphs=[inside])


def driven():
    """A link sets the strength: the saved 1 does not count."""
    loader = lora(3, (2, 0), (2, 1), B, (1, 0.5))
    loader["inputs"].append(socket("strength_model", "FLOAT", (20, 0), "strength_model"))
    first = lora(2, (1, 0), (1, 1), A, (0.5, 0.5))
    return chain(node(20, "PrimitiveNode", (), ("FLOAT",), [0.25, "fixed"]), first, loader, last=3)


CORE = {
    "a chain": (
        chain(
            lora(2, (1, 0), (1, 1), A, (0.8, 0.3)),
            lora(3, (2, 0), (2, 1), B, (-0.5, 1)),
            lora(4, (3, 0), (3, 1), C, (0.125, 0.25)),
            last=4,
        ),
        1,
    ),
    "strength 0": (
        chain(
            lora(2, (1, 0), (1, 1), A, (0, 0.3)),
            lora(3, (2, 0), (2, 1), B, (0.5, 0)),
            lora(4, (3, 0), (3, 1), C, (0, 0)),
            last=4,
        ),
        1,
    ),
    "the same file twice": (
        chain(lora(2, (1, 0), (1, 1), A, (0.8, 0.3)), lora(3, (2, 0), (2, 1), A, (0.4, 1)), last=3),
        1,
    ),
    "model-only loaders": (
        canvas(
            checkpoint(1),
            model_only(2, (1, 0), A, 0.8),
            model_only(3, (2, 0), B, -0.5),
            probe(9, (3, 0), (1, 1)),
        ),
        1,
    ),
    "a loader, then a model-only one": (
        canvas(
            checkpoint(1),
            lora(2, (1, 0), (1, 1), A, (0.8, 0.3)),
            model_only(3, (2, 0), B, 0.5),
            probe(9, (3, 0), (2, 1)),
        ),
        2,
    ),
    "a bypassed loader in the chain": (
        chain(
            lora(2, (1, 0), (1, 1), A, (0.8, 0.3)),
            lora(3, (2, 0), (2, 1), B, (1, 1), mode=BYPASSED),
            lora(4, (3, 0), (3, 1), C, (0.5, 0.5)),
            last=4,
        ),
        3,
    ),
    "a muted loader beside the chain": (
        chain(
            lora(2, (1, 0), (1, 1), A, (0.8, 0.3)),
            lora(3, (2, 0), (2, 1), B, (1, 1), mode=MUTED),
            last=2,
        ),
        2,
    ),
    "two consumers in the middle": (two_consumers(), 2),
    "the text encoder of the middle": (clip_of_the_middle(), 2),
    "a chain inside a subgraph used twice": (in_a_subgraph(), 1),
    "a strength set by a link": (driven(), 1),
}


@pytest.mark.parametrize("name", CORE)
def test_a_graph_of_core_loaders_gives_equal_weights(probed, convert, name):
    workflow, applies = CORE[name]
    converted = convert(workflow)
    assert types_of(converted).count("LoraWorkbenchApply") == applies
    expected, found = probed(workflow), probed(converted)
    assert expected.keys() == found.keys() != set()
    for place, outputs in expected.items():
        assert_equal_weights(outputs, found[place])


def test_a_muted_loader_in_the_chain_stops_both_graphs(probed, convert):
    workflow = chain(
        lora(2, (1, 0), (1, 1), A, (0.8, 0.3), mode=MUTED),
        lora(3, (2, 0), (2, 1), B, (1, 1)),
        last=3,
    )
    for graph in (workflow, convert(workflow)):
        with pytest.raises(PromptRejectedError):
            probed(graph)


# --- other packs: saved values, and what their nodes do with them ---------------------------


def power_calls(values, is_separate):
    """One strength for both, or a second one for CLIP, an empty one being sent as 1."""
    for value in values:
        if not (isinstance(value, dict) and value.get("on") and value.get("lora")):
            continue
        strength = value["strength"]
        second = value.get("strengthTwo")
        clip = (1 if second is None else second) if is_separate else strength
        if value["lora"] != "None" and (strength or clip):
            yield value["lora"], strength, clip


def comfyroll_calls(values):
    for at in range(0, 12, 4):
        switch, name, model, clip = values[at : at + 4]
        if switch == "On" and name != "None":
            yield name, model, clip


def efficiency_calls(values):
    mode, count, *rest = values
    for at in range(count):
        name, weight, model, clip = rest[4 * at : 4 * at + 4]
        if name != "None":
            yield (name, weight, weight) if mode == "simple" else (name, model, clip)


def manager_calls(rows):
    """Names without folder and ending; the pack looks them up in its own list."""
    files = {name.rpartition("/")[2].removesuffix(".safetensors"): name for name in NAMES}
    for row in rows:
        if row.get("active", False):
            strength = float(row["strength"])
            yield files[row["name"]], strength, float(row.get("clipStrength", strength))


def row(lora, strength, two=None, on=True):
    return {"on": on, "lora": lora, "strength": strength, "strengthTwo": two}


POWER = [
    {},
    {"type": "PowerLoraLoaderHeaderWidget"},
    row(A, 0.8, 0.3),
    row(B, 0.5),
    row(C, 2, 2, on=False),
    row("None", 1, 1),
    row(C, 0, 0),
    {},
    "",
]
ROLL_1 = ["On", A, 0.8, 0.3, "Off", B, 1, 1, "On", "None", 1, 1]
ROLL_2 = ["On", B, -0.5, 0.5, "On", C, 0, 0.25, "Off", "None", 1, 1]
SIMPLE = ["simple", 2, A, 0.7, 9, 9, B, 0.4, 9, 9, C, 1, 1, 1]
ADVANCED = ["advanced", 2, "None", 9, 1, 1, C, 9, 0.6, 0.2, A, 1, 1, 1]
MANAGED = [
    {"name": "conv_a", "strength": "0.80", "active": True},
    {"name": "conv_b", "strength": 0.5, "clipStrength": "0.25", "active": True, "locked": True},
    {"name": "conv_c", "strength": 1, "clipStrength": 1, "active": False},
]
STACK_2 = [{"name": "conv_c", "strength": 0.4, "clipStrength": 0, "active": True}]


def stacker(number, kind, values, before=None, **more):
    inputs = [("lora_stack", "LORA_STACK", before)]
    return node(number, kind, inputs, ("LORA_STACK", "STRING"), values, **more)


def applied(number, stack, kind="CR Apply LoRA Stack", values=()):
    inputs = [
        ("model", "MODEL", (1, 0)),
        ("clip", "CLIP", (1, 1)),
        ("lora_stack", "LORA_STACK", stack),
    ]
    return node(number, kind, inputs, (*MODEL_CLIP, "STRING"), values)


def power(shown):
    inputs = [("model", "MODEL", (1, 0)), ("clip", "CLIP", (1, 1))]
    outputs = (*MODEL_CLIP, "STRING")
    properties = {"Show Strengths": shown} if shown else {}
    kind = "Power Lora Loader (rgthree)"
    return chain(node(2, kind, inputs, outputs, POWER, **properties), last=2)


CR, EFFICIENCY = "CR LoRA Stack", "LoRA Stacker"
MANAGER = [f"Lora {kind} (LoraManager)" for kind in ("Stacker", "Loader")]
FOREIGN = {
    "rgthree, one strength": (power("Single Strength"), [*power_calls(POWER, False)]),
    "rgthree, no property": (power(None), [*power_calls(POWER, False)]),
    "rgthree, two strengths": (power("Separate Model & Clip"), [*power_calls(POWER, True)]),
    "Comfyroll": (
        chain(stacker(2, CR, ROLL_1), stacker(3, CR, ROLL_2, (2, 0)), applied(4, (3, 0)), last=4),
        [*comfyroll_calls(ROLL_1), *comfyroll_calls(ROLL_2)],
    ),
    "Comfyroll, the stack before is bypassed": (
        chain(
            stacker(2, CR, ROLL_1),
            stacker(3, CR, ROLL_2, (2, 0), mode=BYPASSED),
            applied(4, (3, 0)),
            last=4,
        ),
        [*comfyroll_calls(ROLL_1)],
    ),
    "Comfyroll's loader": (
        chain(
            node(
                2,
                "CR Load LoRA",
                [("model", "MODEL", (1, 0)), ("clip", "CLIP", (1, 1))],
                (*MODEL_CLIP, "STRING"),
                ["On", A, 0.8, 0.3],
            ),
            last=2,
        ),
        [(A, 0.8, 0.3)],
    ),
    "Efficiency": (
        chain(
            stacker(2, EFFICIENCY, SIMPLE),
            stacker(3, EFFICIENCY, ADVANCED, (2, 0)),
            applied(4, (3, 0)),
            last=4,
        ),
        [*efficiency_calls(ADVANCED), *efficiency_calls(SIMPLE)],
    ),
    "Lora Manager": (
        chain(
            stacker(2, MANAGER[0], ["", STACK_2]),
            applied(4, (2, 0), MANAGER[1], ["<lora:conv_a:0.8>", {"__value__": MANAGED}]),
            last=4,
        ),
        [*manager_calls(STACK_2), *manager_calls(MANAGED)],
    ),
}


def core_graph(calls):
    loaders = [
        lora(number, (number - 1, 0), (number - 1, 1), name, strengths)
        for number, (name, *strengths) in enumerate(calls, 2)
    ]
    return chain(*loaders, last=len(calls) + 1)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_graph_of_another_pack_gives_the_weights_of_its_loras(probed, convert, name):
    workflow, calls = FOREIGN[name]
    converted = convert(workflow)
    assert {"CheckpointLoaderSimple", "TestProbe"} == {
        kind for kind in types_of(converted) if not kind.startswith("LoraWorkbench")
    }
    assert_equal_weights(probed(core_graph(calls))["9"], probed(converted)["9"])
