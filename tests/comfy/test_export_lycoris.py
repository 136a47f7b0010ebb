"""ComfyUI's own loader changes its weights by what LyCORIS says was trained."""

import subprocess
import sys

import pytest
from safetensors.torch import load_file

from .comfy_source import REPOSITORY
from .test_export import BOUND, comfy_key, inference_mode, tiny_clip, tiny_model  # noqa: F401
from .test_runtime import relative_error

KINDS = (
    *("loha", "loha tucker", "lokr", "lokr of a factor", "lokr both of factors", "lokr full"),
    *("oft", "oft constrained", "oft rescaled"),
)
CASES = [("sd15", kind) for kind in KINDS] + [("sdxl", kind) for kind in ("loha", "lokr", "oft")]
DIFFERS = ("oft constrained", "oft rescaled")  # ComfyUI 0.30; the exporter warns of it


@pytest.fixture(scope="module")
def files(comfy):
    """The export matrix, written by a process that can import diffusers."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.lycoris_cases"]
    subprocess.run([*command, comfy.loras_dir], check=True, cwd=REPOSITORY)
    return comfy.loras_dir


def changes(patcher, weights):
    """What core's patches change each weight by, in float64."""
    from comfy import lora

    found = {}
    for key, patches in patcher.patches.items():
        base = weights[key].double()
        found[key] = lora.calculate_weight(patches, base.clone(), key) - base
    return found


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_lora_loader_makes_the_trained_deltas(files, family, kind):
    import nodes

    name = f"lycoris-{CASES.index((family, kind))}"
    weights = {
        comfy_key(*key.split("/")): weight
        for key, weight in load_file(files / f"lycoris-{family}-weights.safetensors").items()
    }
    expected = {
        comfy_key(*key.split("/")): delta
        for key, delta in load_file(files / f"{name}-deltas.safetensors").items()
    }
    model, clip = nodes.LoraLoader().load_lora(
        tiny_model(family), tiny_clip(family), f"{name}.safetensors", 1.0, 1.0
    )
    got = changes(model, weights) | changes(clip.patcher, weights)
    assert got.keys() == expected.keys()
    errors = {
        key: relative_error(got[key], delta.reshape(got[key].shape))
        for key, delta in expected.items()
    }
    if kind in DIFFERS:
        assert max(errors.values()) > 0.05
    else:
        assert max(errors.values()) <= BOUND, max(errors, key=errors.get)


def test_the_cases_are_those_of_the_trainer(files):
    assert len(list(files.glob("lycoris-*-deltas.safetensors"))) == len(CASES)
