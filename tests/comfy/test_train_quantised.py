"""Training on quantised models, against the same model with the values of its weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from .flow_checkpoint import flux_model
from .quantised_model import LAYER, STORED_AS_FP8, quantised, self_attention, slim_unet_tensors
from .training_runs import Listener, Runs, loaded_checkpoint, same_state, state_of

pytestmark = [
    pytest.mark.comfyui("0.30", "the trainer is written for 0.30"),
    pytest.mark.usefixtures("one_thread"),
]

ADAPTERS = {
    "lora": {"targets": ("unet",)},
    "lokr": {"method": "lokr", "targets": ("unet",)},
    "oft": {"method": "oft", "targets": ("attn", "ff")},
}


@pytest.fixture(scope="module")
def slim(comfy, slim_checkpoint):
    return loaded_checkpoint(slim_checkpoint)


@pytest.fixture(scope="module")
def fp8(comfy, slim_checkpoint):
    with torch.inference_mode():
        return quantised(slim_unet_tensors(comfy, slim_checkpoint), (), STORED_AS_FP8)


@pytest.fixture(scope="module")
def exact(fp8):
    """The same values in float32."""
    from comfy import sd

    tensors = {k: v.float() for k, v in fp8.model.diffusion_model.state_dict().items()}
    with torch.inference_mode():
        return sd.load_diffusion_model_state_dict(tensors, {"dtype": torch.float32})


@pytest.fixture
def runs(comfy, fp8, slim, tmp_path):
    return Runs(comfy, (fp8, *slim[1:]), tmp_path)


def answer_and_gradients(runs, adapter):
    """Of factors that are moved a little from their start."""
    pack, model, numbers = runs.pack, runs.trainable(), torch.Generator().manual_seed(1)
    config = runs.config(adapter=adapter)
    noisy, aim = (torch.randn(2, 4, 8, 8, generator=numbers) for _ in range(2))
    size = pack.trainable.PictureSize((64, 64), (0, 0), (64, 64))
    targets = pack.targets.choose_targets(model.parts, model.weights, config.adapter)
    with model.loaded():
        with torch.no_grad():
            texts = model.encode_captions(["a dot", "a line"])
        conditions, draws = model.conditions(texts, [size, size]), pack.dropout.Draws(0)
        with pack.injection.injected(model.parts, targets, config.adapter, 0, draws) as factors:
            trained = [p for each in factors for p in each.parameters.values()]
            with torch.no_grad():
                for parameter in trained:
                    parameter += torch.randn(parameter.shape, generator=numbers) * 0.02
            answer = model.predict(noisy, torch.tensor([400, 30]), conditions)
            return answer.detach(), torch.autograd.grad((answer * aim).sum(), trained)


@pytest.mark.parametrize("method", ADAPTERS)
def test_on_fp8_weights_everything_is_as_on_their_values(runs, exact, method):
    """ComfyUI computes in float32 with such weights: the bits are the same."""
    before = state_of(runs.parts)
    assert {p.dtype for p in runs.model.model.parameters()} == {torch.float8_e4m3fn}
    answer, gradients = answer_and_gradients(runs, ADAPTERS[method])
    assert same_state(before, state_of(runs.parts)) == []
    expected, theirs = answer_and_gradients(runs.with_parts(model=exact), ADAPTERS[method])
    assert torch.equal(answer, expected)
    assert all(map(torch.equal, gradients, theirs))
    assert any(g.abs().max() > 0 for g in gradients)


def test_a_run_on_fp8_weights_is_the_run_on_their_values(runs, exact):
    before, losses = state_of(runs.parts), []
    for name, own in (("fp8", runs), ("exact", runs.with_parts(model=exact))):
        watcher = Listener()
        assert own.train(own.config(steps=2), watcher, name=name).is_complete
        losses.append(watcher.losses)
    assert losses[0] == losses[1]
    assert same_state(before, state_of(runs.parts)) == []


@pytest.mark.parametrize("adapter", [{"method": "dora"}, {"start": "pissa"}], ids=str)
def test_what_would_be_rounded_to_fp8_is_refused(runs, adapter):
    before = state_of(runs.parts)
    with pytest.raises(runs.pack.errors.LoraError, match="does not go with weights of 8 bits"):
        runs.train(runs.config(steps=2, adapter=adapter))
    assert same_state(before, state_of(runs.parts)) == []


@pytest.mark.parametrize("name", ["float8_e4m3fn", "mxfp8", "int8_tensorwise", "nvfp4"])
def test_packed_weights_are_refused_by_name(comfy, runs, slim_checkpoint, name):
    targets = self_attention()
    with torch.inference_mode():
        model = quantised(slim_unet_tensors(comfy, slim_checkpoint), targets, name)
    with pytest.raises(runs.pack.errors.LoraError) as caught:
        runs.with_parts(model=model).trainable()
    assert f"Weights: {LAYER}.weight and {len(targets) - 1} more" in str(caught.value)


def test_numbers_that_are_no_values_are_refused(comfy, runs):
    """As the weights of GGUF files, which other packs load."""
    model = flux_model()
    weight = model.model.diffusion_model.img_in.weight
    model.model.diffusion_model.img_in.weight = torch.nn.Parameter(weight.byte(), False)
    with pytest.raises(runs.pack.errors.LoraError, match=r"Stored as: torch.uint8"):
        runs.with_parts(model=model).trainable()


def quantised_text(comfy, checkpoint, name):
    """SD3's text encoders, CLIP-L alone, with the matrices of its layers in a packed format."""
    from comfy import quant_ops, sd

    prefix = "text_encoders.clip_l.transformer."
    tensors = {
        key.removeprefix(prefix): tensor.float()
        for key, tensor in load_file(comfy.checkpoints_dir / checkpoint).items()
        if key.startswith(prefix)
    }
    tensors["text_projection.weight"] = torch.eye(768)
    layout = quant_ops.QUANT_ALGOS[name]["comfy_tensor_layout"]
    config = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
    for key in [key for key in tensors if ".layers." in key and tensors[key].dim() == 2]:
        packed = quant_ops.QuantizedTensor.from_float(tensors.pop(key), layout)
        tensors |= {**packed.state_dict(key), key.removesuffix("weight") + "comfy_quant": config}
    with torch.inference_mode():
        return sd.load_text_encoder_state_dicts(
            [tensors],
            clip_type=sd.CLIPType.SD3,
            model_options={"quantization_metadata": {"mixed_ops": True}},
        )


def test_packed_text_encoders_may_tell_what_the_pictures_show(comfy, sd3_checkpoint, tmp_path):
    """The usual T5 of 8 bits: it is read, not trained."""
    model, _, vae = loaded_checkpoint(sd3_checkpoint)
    clip = quantised_text(comfy, sd3_checkpoint, "float8_e4m3fn")
    assert sum(map(is_packed, clip.cond_stage_model.parameters())) == 72
    runs = Runs(comfy, (model, clip, vae), tmp_path)
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in runs.parts.values()]
    config = runs.config(steps=2, adapter={"targets": ("attn", "ff")})
    assert runs.train(config).is_complete
    for part, state in zip(runs.parts.values(), before, strict=True):
        assert all(same_bits(tensor, state[key]) for key, tensor in part.state_dict().items())
    text = {"targets": ("attn",), "text_encoder": ("te",)}
    with pytest.raises(runs.pack.errors.LoraError, match="names no weight"):
        runs.train(runs.config(steps=2, adapter=text))


def is_packed(weight):
    return type(weight).__name__ == "QuantizedTensor"


def same_bits(tensor, other):
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other)))
