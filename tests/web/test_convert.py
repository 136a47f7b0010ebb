"""LoRA nodes of core and other packs become Apply LoRAs on the canvas, in one step of undo."""

import json

import pytest

from ..workflow_examples import INPUT_END, canvas, checkpoint, encode, lora, node, sampler, subgraph
from .conftest import LORA

CONVERT = "() => app.extensionManager.command.execute('LoraWorkbench.ConvertLoras')"
UNDO = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()"
TYPES = "() => app.graph.nodes.map(({ type }) => type)"
CHECKPOINT = node(1, "CheckpointLoaderSimple", outputs=["MODEL", "CLIP", "VAE"], values=["c"])
MODEL_AND_CLIP = ["MODEL", "CLIP"]
CHAIN = canvas(
    CHECKPOINT,
    node(
        2,
        "LoraLoader",
        inputs=[("model", "MODEL", (1, 0)), ("clip", "CLIP", (1, 1))],
        outputs=MODEL_AND_CLIP,
        values=[LORA, 0.8, 0.5],
    ),
    node(
        3,
        "LoraLoaderModelOnly",
        inputs=[("model", "MODEL", (2, 0))],
        outputs=["MODEL"],
        values=[LORA, 0.3],
    ),
    node(
        4,
        "ModelMergeSimple",
        inputs=[("model1", "MODEL", (3, 0)), ("model2", "MODEL", (3, 0))],
        outputs=["MODEL"],
        values=[1],
    ),
)
POWER_LOADER = canvas(
    CHECKPOINT,
    node(
        2,
        "Power Lora Loader (rgthree)",
        inputs=[("model", "MODEL", (1, 0)), ("clip", "CLIP", (1, 1))],
        outputs=MODEL_AND_CLIP,
        values=[
            {},
            {"type": "PowerLoraLoaderHeaderWidget"},
            {"on": True, "lora": LORA, "strength": 0.8, "strengthTwo": 0.25},
            {"on": False, "lora": "inks/other.pt", "strength": 1.5, "strengthTwo": None},
            {},
            "",
        ],
        **{"Show Strengths": "Separate Model & Clip"},
    ),
    node(
        3,
        "CLIPTextEncode",
        inputs=[("clip", "CLIP", (2, 1))],
        outputs=["CONDITIONING"],
        values=["a boat"],
    ),
)


@pytest.fixture
def converted(shown):
    """Shows a workflow, converts it, and gives the page and the nodes of the prompt by class."""

    def convert(workflow):
        shown.prompt(workflow)
        shown.page.evaluate(CONVERT)
        shown.page.wait_for_timeout(500)
        sent, _ = shown.current_prompt()
        return shown.page, {entry["class_type"]: entry["inputs"] for entry in sent.values()}

    yield convert
    shown.page.evaluate("() => document.querySelector('.p-dialog-close-button')?.click()")
    assert shown.errors == []


def rows_of(inputs):
    rows = json.loads(inputs["rows"])["rows"]
    return [(row["name"], row["on"], row["model"], row.get("clip")) for row in rows]


def test_a_chain_of_core_loaders_is_one_node_and_one_undo_brings_it_back(converted):
    page, sent = converted(CHAIN)
    assert "LoraLoader" not in sent
    apply = sent["LoraWorkbenchApply"]
    assert rows_of(apply) == [(LORA, True, 0.8, 0.5), (LORA, True, 0.3, 0)]
    assert apply["model"] == ["1", 0]
    page.evaluate(UNDO)
    page.wait_for_timeout(500)
    assert sorted(page.evaluate(TYPES)) == sorted(item["type"] for item in CHAIN["nodes"])


def test_a_loader_whose_pack_is_missing_is_converted_from_its_values(converted):
    _, sent = converted(POWER_LOADER)
    apply = sent["LoraWorkbenchApply"]
    assert rows_of(apply) == [(LORA, True, 0.8, 0.25), ("inks/other.pt", False, 1.5, 1)]
    assert (apply["model"], apply["clip"]) == (["1", 0], ["1", 1])
    assert sent["CLIPTextEncode"]["clip"] == ["2", 1]


def test_a_chain_inside_a_subgraph_is_converted_and_one_undo_brings_it_back(converted):
    loaders = [
        lora(11, (INPUT_END, 0), (INPUT_END, 1), LORA, (0.8, 0.5)),
        lora(12, (11, 0), (11, 1), LORA, (0.3, 0.3)),
    ]
    outputs = [("MODEL", "MODEL", (12, 0)), ("CLIP", "CLIP", (12, 1))]
    inside = subgraph("conv-sub", loaders, [("model", "MODEL"), ("clip", "CLIP")], outputs)
    sockets = [("model", "MODEL", (1, 0)), ("clip", "CLIP", (1, 1))]
    host = node(2, "conv-sub", sockets, MODEL_AND_CLIP)
    workflow = canvas(
        checkpoint(1), host, encode(3, (2, 1)), sampler(4, (2, 0)), subgraphs=[inside]
    )
    page, sent = converted(workflow)
    apply = sent["LoraWorkbenchApply"]
    assert rows_of(apply) == [(LORA, True, 0.8, 0.5), (LORA, True, 0.3, None)]
    assert (apply["model"], apply["clip"]) == (["1", 0], ["1", 1])
    assert sent["CLIPTextEncode"]["clip"] == ["2:12", 1]
    assert sent["KSampler"]["model"] == ["2:12", 0]
    page.evaluate(UNDO)
    page.wait_for_timeout(500)
    kinds = "() => [...(app.rootGraph ?? app.graph).subgraphs.values()][0].nodes.map((n) => n.type)"
    assert page.evaluate(kinds) == ["LoraLoader", "LoraLoader"]


def test_published_workflows_keep_their_loras_in_order(converted, shared_data):
    """Those of ComfyUI's examples; the API form beside each says what its loaders load."""
    for name in ("lora", "lora_multiple"):
        stem = shared_data / "workflows" / f"ComfyUI_examples__{name}"
        wanted = [
            (i["lora_name"], i["strength_model"], i["strength_clip"])
            for i in in_order(json.loads(stem.with_suffix(".api.json").read_text()))
        ]
        page, sent = converted(json.loads(stem.with_suffix(".ui.json").read_text()))
        assert "LoraLoader" not in page.evaluate(TYPES)
        found = [
            (lora, model, model if clip is None else clip)
            for lora, _, model, clip in rows_of(sent["LoraWorkbenchApply"])
        ]
        assert found == wanted


def in_order(prompt):
    """Inputs of the LoraLoader nodes, from the checkpoint on."""
    loaders = {k: v["inputs"] for k, v in prompt.items() if v["class_type"] == "LoraLoader"}
    chain, at = [], next(k for k, v in loaders.items() if v["model"][0] not in loaders)
    while at is not None:
        chain.append(loaders[at])
        at = next((k for k, v in loaders.items() if v["model"][0] == at), None)
    return chain
