"""Train LoRA through the server's API: in one graph with its use, broken off, queued again."""

import json
import re
import time
import uuid

import pytest
from PIL import Image

from .conftest import node, text_to_image
from .test_live import call, until
from .training_runs import pictures

pytestmark = pytest.mark.comfyui("0.30", "the trainer is written for 0.30")

LONG = 400  # steps; about a minute


@pytest.fixture(scope="module", autouse=True)
def _pictures(server):
    pictures(server.input_dir / "dots")


def graph(checkpoint, steps=3, seed=0, retrain=False, settings="", prefix="train"):
    """Train on a few pictures and use the LoRA in the same prompt."""
    overrides = f"run.steps = {steps}\nadapter.rank = 2\noptimizer.warmup_steps = 1\n{settings}"
    extra = {
        "dataset": node("LoraWorkbenchDataset", folder="dots", resolution=64, bucket_step=8),
        "settings": node("LoraWorkbenchTrainSettings", preset="quick look", overrides=overrides),
        "train": node(
            "LoraWorkbenchTrain",
            model=["checkpoint", 0],
            clip=["checkpoint", 1],
            vae=["checkpoint", 2],
            dataset=["dataset", 0],
            settings=["settings", 0],
            seed=seed,
            retrain=retrain,
            name="dots",
        ),
        "add": node(
            "LoraWorkbenchAdd",
            name="dots",
            strength_model=1.0,
            strength_clip=1.0,
            lora_model=["train", 0],
        ),
        "apply": node(
            "LoraWorkbenchApply",
            model=["checkpoint", 0],
            clip=["checkpoint", 1],
            rows="[]",
            lora_stack=["add", 0],
        ),
    }
    found = text_to_image(checkpoint, model=("apply", 0), clip=("apply", 1), extra=extra)
    found["save"]["inputs"]["filename_prefix"] = prefix
    return found


def queued(server, prompt):
    body = {"prompt": prompt, "prompt_id": str(uuid.uuid4())}
    status, answer = call(server, "prompt", json.dumps(body).encode())
    assert status == 200, answer
    return answer["prompt_id"]


def finished(server, prompt_id):
    """The history of a prompt, once it is over."""
    until(lambda: prompt_id in server.get("history"), 180)
    return server.get("history")[prompt_id]


def run(server, prompt):
    entry = finished(server, queued(server, prompt))
    last = entry["status"]["messages"][-1][1]
    assert entry["status"]["status_str"] == "success", last.get("exception_message")
    return entry["outputs"]


def steps_of(outputs):
    """Steps in all, and in this run, by the node's report."""
    found = re.search(r"(\d+), (\d+) of them now", json.dumps(outputs["train"]))
    return int(found[1]), int(found[2])


def trained_file(server, outputs):
    (path,) = re.findall(r"[^\"]*dots[^\"]*\.safetensors", json.dumps(outputs["train"]))[:1]
    name = path.rsplit("/", 1)[-1]
    return (server.output_dir / "loras" / name).read_bytes()


def pixels(server, outputs):
    (image,) = outputs["save"]["images"]
    with Image.open(server.output_dir / image["filename"]) as opened:
        return opened.tobytes()


def at_work(server, prompt_id, step=2):
    """Wait until Train LoRA has done some steps."""

    def is_there():
        panels = server.get("lora_workbench/live?node=train")["panels"]
        return any(
            panel["prompt"] == prompt_id and panel["progress"].get("step", 0) >= step
            for panel in panels
        )

    until(is_there, 120)


def test_a_lora_is_trained_and_used_in_one_graph_and_not_trained_again(server, slim_checkpoint):
    prompt = graph(slim_checkpoint)
    first = run(server, prompt)
    assert steps_of(first) == (3, 3)
    without = run(server, text_to_image(slim_checkpoint))
    assert pixels(server, first) != pixels(server, without)
    server.forget()
    again = run(server, prompt)
    assert steps_of(again) == (3, 0)
    assert pixels(server, again) == pixels(server, first)


def test_a_picture_with_the_lora_before_it_changes_nothing(server, slim_checkpoint):
    """The weights in memory carry the LoRA of the last picture when the node runs."""
    run(server, graph(slim_checkpoint))
    other = run(server, graph(slim_checkpoint, seed=5))
    assert steps_of(other) == (3, 3)
    server.forget()
    alone = run(server, graph(slim_checkpoint, seed=5, retrain=True))
    assert steps_of(alone) == (3, 3)
    assert trained_file(server, alone) == trained_file(server, other)


def test_an_interrupted_run_goes_on_where_it_stopped(server, slim_checkpoint):
    prompt = graph(slim_checkpoint, steps=LONG, seed=1)
    prompt_id = queued(server, prompt)
    at_work(server, prompt_id)
    server.post("interrupt", {})
    entry = finished(server, prompt_id)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]
    second = queued(server, prompt)
    at_work(server, second)
    wish = json.dumps({"prompt": second, "node": "train"}).encode()
    assert call(server, "lora_workbench/keep", wish) == (200, {"keep": True})
    kept = finished(server, second)
    assert kept["status"]["status_str"] == "success"
    done, new = steps_of(kept["outputs"])
    assert 0 < new < done < LONG
    assert pixels(server, kept["outputs"])


def test_retrain_trains_again_to_the_same_bits(server, slim_checkpoint):
    first = run(server, graph(slim_checkpoint, seed=2))
    again = run(server, graph(slim_checkpoint, seed=2, retrain=True))
    assert steps_of(again) == (3, 3)
    assert trained_file(server, again) == trained_file(server, first)


def test_more_pictures_are_another_run(server, slim_checkpoint):
    prompt = graph(slim_checkpoint, seed=3)
    assert steps_of(run(server, prompt)) == (3, 3)
    Image.new("RGB", (64, 64), "red").save(server.input_dir / "dots" / "more.png")
    time.sleep(0.01)
    assert steps_of(run(server, prompt)) == (3, 3)
