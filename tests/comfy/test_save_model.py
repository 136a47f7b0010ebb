"""Save Merged Model: files that ComfyUI loads again as what was seen."""

import hashlib
import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .checkpoints import SLIM, kohya_name, lora_targets, write_lora
from .conftest import NodeFailedError, node, text_to_image

NAMES_FILES = pytest.mark.comfyui("0.30", "a MODEL does not say which file it came from")

LORA = "save_model.safetensors"


@pytest.fixture(scope="module")
def lora(comfy, slim_checkpoint):
    path = comfy.loras_dir / LORA
    write_lora(path, lora_targets(SLIM), rank=4, seed=31)
    return path


def merge_graph(checkpoint, *, save=None, **merge):
    """Text to image with a merge, saved under ``save`` when that is given."""
    rows = [{"name": LORA, "model": 0.8, "clip": 0.5, "weighting": "attn2=0.5"}]
    extra = {
        "stack": node("LoraWorkbenchStack", rows=json.dumps(rows)),
        "merge": node(
            "LoraWorkbenchMerge",
            model=["checkpoint", 0],
            clip=["checkpoint", 1],
            lora_stack=["stack", 0],
            **merge,
        ),
    }
    graph = text_to_image(checkpoint, model=("merge", 0), clip=("merge", 1), extra=extra)
    if save is not None:
        graph["write"] = node(
            "LoraWorkbenchSaveModel",
            model=["merge", 0],
            clip=["merge", 1],
            vae=["checkpoint", 2],
            **save,
        )
    return graph


def written(comfy, result):
    """The file that the node shows, which must lie in the output folder."""
    path = comfy.output_dir / result.outputs["write"]["text"][0].splitlines()[0]
    assert path.is_relative_to(comfy.output_dir.resolve())
    return path


def as_checkpoint(comfy, path, name):
    """Move a written file to where the loader finds it."""
    path.rename(comfy.checkpoints_dir / name)
    return name


def picture(result):
    (path,) = result.pictures
    return path.read_bytes()


@NAMES_FILES
@pytest.mark.parametrize("mode", ["on_device", "bake"])
def test_the_saved_file_sampled_without_loras_gives_the_live_picture(
    comfy, executor, slim_checkpoint, lora, mode
):
    graph = merge_graph(slim_checkpoint, save={"filename": f"checkpoints/{mode}"}, mode=mode)
    live = executor.run(graph)
    path = written(comfy, live)
    assert path.name == f"{mode}_00001_.safetensors"
    with safe_open(path, "pt") as file:
        (entry,) = json.loads(file.metadata()["lora_workbench.merged"])
    assert (entry["base"], len(entry["loras"])) == (slim_checkpoint, 1)
    name = as_checkpoint(comfy, path, f"saved_{mode}.safetensors")
    assert picture(comfy.run(text_to_image(name))) == picture(live)
    (comfy.checkpoints_dir / name).unlink()


@pytest.fixture(scope="module")
def saved(comfy, slim_checkpoint, lora):
    """Receipt and path of one file in fp16, and its tensors."""
    graph = merge_graph(slim_checkpoint, save={"filename": "nested/half", "dtype": "fp16"})
    result = comfy.run({key: graph[key] for key in ("checkpoint", "stack", "merge", "write")})
    path = written(comfy, result)
    yield path, result.outputs["write"]["text"][0]
    path.unlink()


@NAMES_FILES
def test_the_header_tells_which_loras_are_in_the_file(saved, slim_checkpoint, lora):
    with safe_open(saved[0], "pt") as file:
        metadata = file.metadata()
    (entry,) = json.loads(metadata["lora_workbench.merged"])
    assert entry["base"] == slim_checkpoint
    assert entry["loras"] == [
        {
            "name": LORA,
            "sha256": hashlib.sha256(lora.read_bytes()).hexdigest(),
            "strength_model": 0.8,
            "strength_clip": 0.5,
            "weighting": "attn2=0.5",
        }
    ]
    assert metadata["modelspec.predict_key"] == "epsilon"
    assert f"LoRAs: {LORA}" in saved[1]


def test_another_dtype_is_the_rounded_merge(comfy, saved, slim_checkpoint, lora):
    """Every float weight in fp16, and each the rounding of what as_loaded writes."""
    graph = merge_graph(slim_checkpoint, save={"filename": "whole"})
    whole = written(
        comfy, comfy.run({key: graph[key] for key in ("checkpoint", "stack", "merge", "write")})
    )
    with safe_open(saved[0], "pt") as half, safe_open(whole, "pt") as full:
        names = sorted(full.keys())
        assert sorted(half.keys()) == names
        dtypes = set()
        for key in names:
            value, expected = half.get_tensor(key), full.get_tensor(key)
            if expected.is_floating_point() and expected.ndim:
                dtypes.add(expected.dtype)
                assert value.dtype == torch.float16, key
                assert torch.equal(value, expected.half()), key
            else:
                assert torch.equal(value, expected), key
        assert torch.float32 in dtypes
    whole.unlink()


def test_a_weight_that_is_too_large_for_the_dtype_is_an_error_and_no_file(
    comfy, executor, slim_checkpoint, monkeypatch
):
    graph = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=slim_checkpoint),
        "write": node(
            "LoraWorkbenchSaveModel", model=["checkpoint", 0], filename="large", dtype="fp16"
        ),
    }
    from comfy import sd

    real = sd.load_checkpoint_guess_config

    def with_large_weight(*args, **kwargs):
        loaded = real(*args, **kwargs)
        loaded[0].model.diffusion_model.out[2].bias.data[0] = 1e6
        return loaded

    monkeypatch.setattr(sd, "load_checkpoint_guess_config", with_large_weight)
    with pytest.raises(NodeFailedError, match="too large for"):
        executor.run(graph)
    assert not list(comfy.output_dir.glob("large*"))
    assert not list(comfy.output_dir.glob(".*"))


@pytest.mark.parametrize("filename", ["../out", "/tmp/out", "a/../../b", "C:\\x", ""])
def test_names_cannot_leave_the_output_folder(comfy, executor, slim_checkpoint, filename):
    graph = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=slim_checkpoint),
        "write": node("LoraWorkbenchSaveModel", model=["checkpoint", 0], filename=filename),
    }
    with pytest.raises(NodeFailedError, match="not one inside the output folder"):
        executor.run(graph)


def test_no_file_is_overwritten(comfy, executor, slim_checkpoint):
    graph = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=slim_checkpoint),
        "write": node("LoraWorkbenchSaveModel", model=["checkpoint", 0], filename="twice"),
    }
    paths = []
    for _ in range(2):
        paths.append(written(comfy, comfy.run(graph)))
    assert [path.name for path in paths] == ["twice_00001_.safetensors", "twice_00002_.safetensors"]
    for path in paths:
        path.unlink()


# What ComfyUI 0.30 calls a format, and the dtype in which a file holds its numbers.
FORMATS = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "mxfp8": torch.float8_e4m3fn,
    "int8_tensorwise": torch.int8,
    "nvfp4": torch.uint8,
}


@pytest.fixture(scope="module", params=FORMATS)
def quantised_checkpoint(request, comfy, slim_checkpoint):
    """The slim checkpoint with its feed-forward layers quantised, as ComfyUI 0.30 stores them."""
    quant_ops = pytest.importorskip(
        "comfy.quant_ops", reason="this ComfyUI has no quantised layers"
    )
    name = request.param
    tensors = load_file(comfy.checkpoints_dir / slim_checkpoint)
    layout = quant_ops.QUANT_ALGOS[name]["comfy_tensor_layout"]
    options = {"scale": "recalculate"} if name == "float8_e4m3fn" else {}
    mark = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
    for key in [key for key in tensors if ".ff.net" in key and key.endswith("weight")]:
        weight = tensors.pop(key).float()
        quantised = quant_ops.QuantizedTensor.from_float(weight, layout, **options)
        tensors |= quantised.state_dict(key)
        tensors[key.removesuffix("weight") + "comfy_quant"] = mark.clone()
    path = comfy.checkpoints_dir / f"quantised_{name}.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    yield name, path.name
    path.unlink()


def test_a_quantised_base_stays_quantised_and_the_error_is_told(
    comfy, executor, quantised_checkpoint, lora
):
    """The error by hand: what ComfyUI reads in the file against the exact merge, in float64."""
    name, checkpoint = quantised_checkpoint
    graph = merge_graph(checkpoint, save={"filename": "quantised", "dtype": "fp16"})
    result = executor.run({key: graph[key] for key in ("checkpoint", "stack", "merge", "write")})
    receipt = result.outputs["write"]["text"][0]
    saved = as_checkpoint(comfy, written(comfy, result), "saved_quantised.safetensors")
    stored = load_file(comfy.checkpoints_dir / saved)
    marks = [key for key in stored if key.endswith("comfy_quant")]
    layers = [key.removesuffix("comfy_quant") for key in marks]
    assert [json.loads(bytes(stored[key].tolist())) for key in marks] == [{"format": name}] * 8
    assert {stored[f"{layer}weight"].dtype for layer in layers} == {FORMATS[name]}
    before, after = (quantised_weights(comfy, file) for file in (checkpoint, saved))
    assert before.keys() == after.keys() == {layer_key(layer) for layer in layers}
    shares = [effect_error(after[key] - before[key], key, lora) for key in before]
    told = re.search(r"quantised layers: 8 stay quantised; .* at most ([\d.]+)%", receipt)
    assert abs(float(told[1]) / 100 - max(shares)) < 1e-3
    assert max(shares) > 0.01
    comfy.run(text_to_image(saved))
    (comfy.checkpoints_dir / saved).unlink()


def layer_key(layer):
    """A layer's weight in ComfyUI's memory."""
    return f"{layer.removeprefix('model.')}weight"


def quantised_weights(comfy, checkpoint):
    """The values of the quantised weights of a file, as ComfyUI's loader reads them."""
    from comfy import sd

    path = str(comfy.checkpoints_dir / checkpoint)
    with torch.inference_mode():
        model = sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0].model
        return {
            key: weight.dequantize().double()
            for key, weight in model.named_parameters()
            if type(weight).__name__ == "QuantizedTensor"
        }


def effect_error(change, target_key, lora):
    """``||stored - exact|| / ||delta||`` of a layer of the UNet."""
    (target,) = (t for t in lora_targets(SLIM) if t.target_key == target_key)
    factors = load_file(lora)
    name = kohya_name(target)
    up, down = (factors[f"{name}.lora_{part}.weight"].double() for part in ("up", "down"))
    delta = 0.8 * up @ down
    return float((change - delta).norm() / delta.norm())


def test_loras_in_runtime_mode_are_refused(executor, slim_checkpoint, lora):
    graph = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=slim_checkpoint),
        "apply": node(
            "LoraWorkbenchApply",
            model=["checkpoint", 0],
            rows=json.dumps([{"name": LORA}]),
            mode="runtime",
        ),
        "write": node("LoraWorkbenchSaveModel", model=["apply", 0]),
    }
    with pytest.raises(NodeFailedError, match="not in its weights") as caught:
        executor.run(graph)
    assert "set the mode of Apply LoRAs to 'merge'" in caught.value.message
