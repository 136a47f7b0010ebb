"""The slim UNet in ComfyUI's quantised formats, and what a patched layer adds."""

import json

import pytest
import torch
from safetensors.torch import load_file

from .checkpoints import SLIM, attention_targets, unet_targets

STORED_AS_FP8 = "plain fp8"
BLOCK = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1"
LAYER = f"{BLOCK}.to_q"


def self_attention():
    """Targets of the slim UNet; packed cross-attention hides its size from ComfyUI."""
    return [t for t in attention_targets(unet_targets(SLIM)) if ".attn1." in t.target_key]


def slim_unet_tensors(comfy, slim_checkpoint):
    """As ``load_diffusion_model_state_dict`` takes them."""
    prefix = "model.diffusion_model."
    tensors = load_file(comfy.checkpoints_dir / slim_checkpoint)
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def quantised(tensors, targets, name):
    """A MODEL whose ``targets`` are stored in a format of ComfyUI, through its own loader."""
    from comfy import quant_ops, sd

    tensors = dict(tensors)
    if name == STORED_AS_FP8:
        return sd.load_diffusion_model_state_dict(tensors, {"dtype": torch.float8_e4m3fn})
    layout = quant_ops.QUANT_ALGOS[name]["comfy_tensor_layout"]
    config = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
    for target in targets:
        key = target.target_key.removeprefix("diffusion_model.")
        weight = tensors.pop(key).float()
        tensors.update(quant_ops.QuantizedTensor.from_float(weight, layout).state_dict(key))
        tensors[key.removesuffix("weight") + "comfy_quant"] = config
    return sd.load_diffusion_model_state_dict(tensors)


def mxfp8_model(comfy, slim_checkpoint):
    """A MODEL, the target of its ``LAYER``, and that weight as it is stored, in float32."""
    pytest.importorskip("comfy.quant_ops", reason="ComfyUI 0.3.64 has no quantised tensors")
    targets = self_attention()
    model = quantised(slim_unet_tensors(comfy, slim_checkpoint), targets, "mxfp8")
    (target,) = (t for t in targets if t.target_key == f"{LAYER}.weight")
    return model, target, model.model.get_submodule(LAYER).weight.dequantize().float()


def effect_error(base, patched, delta):
    """Relative distance of what ``LAYER`` adds in ``patched`` to ``base``'s from x @ delta.T."""
    x = torch.randn(16, 320, generator=torch.Generator().manual_seed(0))
    got = _layer_output(patched, x) - _layer_output(base, x)
    effect = x.double() @ delta.double().T
    return ((got - effect).norm() / effect.norm()).item()


def _layer_output(patcher, x):
    from comfy import model_management

    model_management.load_models_gpu([patcher])
    return patcher.model.get_submodule(LAYER)(x).double()
