"""The embedded host against ComfyUI: the same checkpoint, the same graph, stage by stage."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from .checkpoints import SLIM, lora_targets, write_lora
from .conftest import node, text_to_image
from .embedded_run import keep_tensor

pytestmark = pytest.mark.comfyui("0.30", "the embedded host does what 0.30 does")

SAMPLERS = (
    *("euler", "euler_ancestral", "heun", "dpm_2"),
    *("dpmpp_2m", "dpmpp_2m_sde", "lcm", "ddim"),
)
SCHEDULERS = ("normal", "karras", "exponential", "simple", "sgm_uniform", "ddim_uniform")
EACH_ONCE = [(name, "normal") for name in SAMPLERS] + [("euler", name) for name in SCHEDULERS[1:]]
ALL_PAIRS = [(name, scheduler) for name in SAMPLERS for scheduler in SCHEDULERS]
PROMPT = "a (red:1.2) lighthouse, " + "by a very quiet sea under tall clouds, " * 12  # two chunks


@pytest.fixture(scope="module", autouse=True)
def _text_encoders_in_fp32(comfy):
    """ComfyUI: on a CPU it keeps text encoders in fp16, and rounds merged LoRAs to it (0.30)."""
    from comfy.cli_args import args

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(args, "fp32_text_enc", True)
        yield


@pytest.fixture(scope="module")
def checkpoint(half_checkpoint):
    return half_checkpoint


@pytest.fixture(scope="module")
def models(comfy, checkpoint):
    """The folder that both hosts read, with two LoRAs on UNet and text encoder."""
    for seed, name in enumerate(("one", "two")):
        path = comfy.loras_dir / f"{name}.safetensors"
        write_lora(path, lora_targets(SLIM), seed=seed, alpha=2.0)
    return comfy.base_directory / "models"


@pytest.fixture
def kept(comfy, monkeypatch):
    """What ``KeepTensor`` nodes got in ComfyUI."""
    import nodes

    tensors = {}
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "KeepTensor", keep_tensor(tensors))
    return tensors


def embedded(models: Path, output: Path, *graphs):
    """Run graphs in another process; gives a record and the kept tensors of each."""
    script = Path(__file__).with_name("embedded_run.py")
    output.mkdir(exist_ok=True)
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(models), str(output)],
        input=json.dumps(graphs),
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    records = [json.loads(line) for line in finished.stdout.splitlines()]
    files = [output / f"{number}.safetensors" for number in range(len(graphs))]
    return records, [load_file(file) if file.exists() else {} for file in files]


def with_loras(checkpoint):
    """Text to image through a core loader and our Apply, both on UNet and text encoder."""
    extra = {
        "core": node(
            "LoraLoader",
            model=["checkpoint", 0],
            clip=["checkpoint", 1],
            lora_name="one.safetensors",
            strength_model=0.8,
            strength_clip=0.6,
        ),
        "ours": node(
            "LoraWorkbenchApply",
            model=["core", 0],
            clip=["core", 1],
            rows="<lora:two:-0.5:0.4>",
        ),
        "skip": node("CLIPSetLastLayer", clip=["ours", 1], stop_at_clip_layer=-2),
    }
    graph = text_to_image(checkpoint, model=("ours", 0), clip=("skip", 0), steps=20, extra=extra)
    graph["positive"]["inputs"]["text"] = PROMPT
    return graph


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param(EACH_ONCE, id="each once"),
        pytest.param(ALL_PAIRS, id="all pairs", marks=pytest.mark.slow),
    ],
)
def test_samplers_and_schedulers_give_comfyuis_latents(
    pairs, comfy, models, checkpoint, kept, tmp_path
):
    """20 steps, weights in the prompt, two chunks, clip skip 2, LoRAs on UNet and CLIP.

    ``test_embedded_sampling`` runs all pairs on a smaller UNet.
    """
    graph = with_loras(checkpoint)
    sampler = graph.pop("sampler")
    for key in ("decode", "save"):
        del graph[key]
    for name, scheduler in pairs:
        key = f"{name}-{scheduler}"
        chosen = {"sampler_name": name, "scheduler": scheduler}
        graph[key] = node("KSampler", **{**sampler["inputs"], **chosen})
        graph[f"keep {key}"] = node("KeepTensor", name=key, latent=[key, 0])
    for key in ("positive", "negative"):
        graph[f"keep {key}"] = node("KeepTensor", name=key, conditioning=[key, 0])
    comfy.run(graph)
    ((record,), (ours,)) = embedded(models, tmp_path / "ours", graph)
    assert record["status"] == "success", record["error"]
    assert ours.keys() == kept.keys()
    assert len(ours) >= len(pairs) + 2
    for key in ("positive", "negative"):
        assert ours[key].shape == kept[key].shape
        assert relative(ours[key], kept[key]) <= 1e-5
    wrong = {
        key: error
        for key in ours
        if "-" in key and not (error := relative(ours[key], kept[key])) <= 1e-4
    }
    assert not wrong


def test_pictures_are_comfyuis_to_one_grey_level_and_nodes_run_in_its_order(
    comfy, models, checkpoint, tmp_path
):
    graph = with_loras(checkpoint)
    theirs = comfy.run(graph)
    ((record,), _) = embedded(models, tmp_path / "ours", graph)
    assert record["status"] == "success", record["error"]
    assert record["executed"] == list(theirs.executed)
    (picture,) = record["pictures"]
    assert_same_picture(tmp_path / "ours" / picture, theirs.pictures[0])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families_give_comfyuis_pictures(family, comfy, kept, tmp_path):
    """Weights in the prompt, two chunks, clip skip 3, a LoRA on UNet and encoders, 20 steps."""
    name = f"whole-{family}.safetensors"
    checkpoint, lora = comfy.checkpoints_dir / name, comfy.loras_dir / name
    script = Path(__file__).with_name("family_checkpoint.py")
    subprocess.run([sys.executable, "-W", "ignore", script, family, checkpoint, lora], check=True)
    extra = {
        "ours": node(
            "LoraWorkbenchApply",
            model=["checkpoint", 0],
            clip=["checkpoint", 1],
            rows=f"<lora:whole-{family}:0.8:0.6>",
        ),
        "skip": node("CLIPSetLastLayer", clip=["ours", 1], stop_at_clip_layer=-3),
        "keep": node("KeepTensor", name="latent", latent=["sampler", 0]),
        "keep text": node("KeepTensor", name="text", conditioning=["positive", 0]),
    }
    graph = text_to_image(name, model=("ours", 0), clip=("skip", 0), steps=20, extra=extra)
    graph["positive"]["inputs"]["text"] = PROMPT
    theirs = comfy.run(graph)
    checks = {key: tensor.clone() for key, tensor in kept.items()}
    ((record,), (ours,)) = embedded(comfy.base_directory / "models", tmp_path / "ours", graph)
    assert record["status"] == "success", record["error"]
    assert ours.keys() == checks.keys()
    assert relative(ours["text"], checks["text"]) <= 1e-5
    assert relative(ours["latent"], checks["latent"]) <= 1e-4
    assert_same_picture(tmp_path / "ours" / record["pictures"][0], theirs.pictures[0])


def assert_same_picture(ours, theirs):
    left, right = (np.asarray(Image.open(path)).astype(int) for path in (ours, theirs))
    assert left.shape == right.shape
    assert abs(left - right).max() <= 1
    assert right.std() > 1  # not a plain picture


def test_a_rerun_executes_nothing_and_a_strength_only_what_follows(models, checkpoint, tmp_path):
    graph = with_loras(checkpoint)
    graph["sampler"]["inputs"]["steps"] = 1
    changed = json.loads(json.dumps(graph))
    changed["ours"]["inputs"]["rows"] = "<lora:two:0.25:0.4>"
    records, _ = embedded(models, tmp_path / "ours", graph, graph, changed)
    assert set(records[0]["executed"]) == set(graph)
    assert records[1]["executed"] == []
    assert set(records[1]["cached"]) >= {"save"}
    after = {"ours", "skip", "positive", "negative", "sampler", "decode", "save"}
    assert set(records[2]["executed"]) == after


def test_two_branches_in_one_graph_sample_what_each_alone_does(models, checkpoint, tmp_path):
    """The base, a LoRA, the base again, another strength: the bits of a graph of its own each."""

    def graph(*branches):
        extra = {"keep": None}
        built = text_to_image(checkpoint)
        for key in ("sampler", "decode", "save"):
            inputs = built.pop(key)["inputs"]
            extra[key] = inputs
        for name, strength in branches:
            built[f"lora {name}"] = node(
                "LoraLoaderModelOnly",
                model=["checkpoint", 0],
                lora_name="one.safetensors",
                strength_model=strength,
            )
            model = [f"lora {name}", 0]
            built[f"sample {name}"] = node("KSampler", **{**extra["sampler"], "model": model})
            keep = node("KeepTensor", name=name, latent=[f"sample {name}", 0])
            built[f"keep {name}"] = keep
        return built

    branches = [("base", 0.0), ("a", 0.9), ("again", 0.0), ("b", -0.4)]
    graphs = [graph(*branches), *[graph(branch) for branch in branches]]
    records, kept = embedded(models, tmp_path / "ours", *graphs)
    assert all(record["status"] == "success" for record in records)
    together, alone = kept[0], {name: t for tensors in kept[1:] for name, t in tensors.items()}
    assert together.keys() == alone.keys() == {"base", "a", "again", "b"}
    assert all(torch.equal(together[name], alone[name]) for name in together)
    assert torch.equal(together["base"], together["again"])
    assert not torch.equal(together["base"], together["a"])
