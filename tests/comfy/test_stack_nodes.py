"""Add, Prompt and Weight in graphs that a real ComfyUI executes."""

import json

import pytest

from .checkpoints import SLIM, lora_targets, write_lora
from .conftest import NodeFailedError, PromptRejectedError, node, text_to_image


@pytest.fixture(scope="module")
def executor(comfy):
    """One for all tests here: the checkpoint is loaded once."""
    return comfy.new_executor()


@pytest.fixture(scope="module")
def loras(comfy, slim_checkpoint):
    """Two kohya files, one in a folder and with a space in its name."""
    targets = lora_targets(SLIM)
    (comfy.loras_dir / "style").mkdir(exist_ok=True)
    write_lora(comfy.loras_dir / "style" / "soft ink.safetensors", targets, seed=1)
    write_lora(comfy.loras_dir / "detail.safetensors", targets, seed=2)
    return ["style/soft ink.safetensors", "detail.safetensors"]


def graph(checkpoint, stack, extra=None):
    """Text to image with a stack, ``(node id, slot)``, applied."""
    inputs = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "rows": "[]"}
    apply = node("LoraWorkbenchApply", **inputs, lora_stack=list(stack))
    return text_to_image(
        checkpoint, model=("apply", 0), clip=("apply", 1), extra={"apply": apply, **(extra or {})}
    )


def stack_of(rows):
    return {"stack": node("LoraWorkbenchStack", rows=json.dumps(rows))}


def shown(result):
    """Picture and report of a run."""
    (path,) = result.pictures
    return path.read_bytes(), result.outputs["apply"]["text"][0]


def test_a_prompt_with_tags_is_its_text_and_its_rows(executor, slim_checkpoint, loras):
    rows = [{"name": loras[0], "model": 0.8}, {"name": loras[1], "model": 0.5, "clip": 0.2}]
    text = "a lighthouse <lora:soft ink:0.8>, <lora:detail:0.5:0.2> at dusk"
    prompt = {"prompt": node("LoraWorkbenchPrompt", text=text)}
    tagged = graph(slim_checkpoint, ("prompt", 1), prompt)
    tagged["positive"]["inputs"]["text"] = ["prompt", 0]
    plain = graph(slim_checkpoint, ("stack", 0), stack_of(rows))
    plain["positive"]["inputs"]["text"] = "a lighthouse, at dusk"
    assert shown(executor.run(tagged)) == shown(executor.run(plain))


def test_weighting_afterwards_is_weighting_at_once(executor, slim_checkpoint, loras):
    rows = [{"name": loras[0], "weighting": "attn2=0, ff=0.5"}, {"name": loras[1]}]
    at_once = executor.run(graph(slim_checkpoint, ("stack", 0), stack_of(rows)))
    before = stack_of([{"name": loras[0], "weighting": "attn2=0"}, {"name": loras[1]}])
    weight = node("LoraWorkbenchWeight", lora_stack=["stack", 0], weighting="ff=0.5", which="*ink*")
    afterwards = executor.run(graph(slim_checkpoint, ("weight", 0), {**before, "weight": weight}))
    assert shown(afterwards) == shown(at_once)


def test_a_lora_model_added_is_its_row(executor, slim_checkpoint, loras):
    row = executor.run(graph(slim_checkpoint, ("stack", 0), stack_of([{"name": loras[1]}])))
    extra = {
        "load": node(
            "LoraWorkbenchLoad", lora_name=loras[1], strength_model=0.0, strength_clip=0.0
        ),
        "add": node(
            "LoraWorkbenchAdd",
            lora_model=["load", 1],
            name="",
            strength_model=1.0,
            strength_clip=1.0,
        ),
    }
    assert shown(executor.run(graph(slim_checkpoint, ("add", 0), extra))) == shown(row)


def test_a_filter_that_names_nothing_lists_the_stack(executor, slim_checkpoint, loras):
    weight = node("LoraWorkbenchWeight", lora_stack=["stack", 0], weighting="ff=0", which="3")
    extra = {**stack_of([{"name": name} for name in loras]), "weight": weight}
    with pytest.raises(NodeFailedError, match=r"2: detail\.safetensors") as caught:
        executor.run(graph(slim_checkpoint, ("weight", 0), extra))
    assert caught.value.node_id == "weight"


@pytest.mark.parametrize(
    ("node_id", "inputs", "message"),
    [
        ("LoraWorkbenchPrompt", {"text": "a cat <lora:a:strong>"}, "not a number"),
        (
            "LoraWorkbenchWeight",
            {"lora_stack": ["stack", 0], "weighting": "attn3=0", "which": ""},
            "attn3",
        ),
    ],
)
def test_unreadable_text_is_refused_when_the_graph_is_queued(
    executor, slim_checkpoint, loras, node_id, inputs, message
):
    slot = 1 if node_id == "LoraWorkbenchPrompt" else 0
    extra = {**stack_of([{"name": loras[0]}]), "bad": node(node_id, **inputs)}
    with pytest.raises(PromptRejectedError, match=message):
        executor.run(graph(slim_checkpoint, ("bad", slot), extra))
