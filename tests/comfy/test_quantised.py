"""Quantised bases, as ComfyUI loads them: what is left of a LoRA's effect, against float64."""

import pytest
import torch
from safetensors.torch import load_file

from .checkpoints import kohya_name, write_lora
from .quantised_model import (
    LAYER,
    STORED_AS_FP8,
    effect_error,
    quantised,
    self_attention,
    slim_unet_tensors,
)
from .test_runtime import apply, one_row

FORMATS = ("float8_e4m3fn", "mxfp8", "int8_tensorwise", "nvfp4", STORED_AS_FP8)


@pytest.fixture(autouse=True)
def inference_mode(comfy):
    """As in ComfyUI's executor."""
    pytest.importorskip("comfy.quant_ops", reason="ComfyUI 0.3.64 has no quantised tensors")
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def targets(comfy):
    return self_attention()


@pytest.fixture(scope="module")
def lora(comfy, targets):
    """A LoRA for them, whose deltas are about a tenth of the weights."""
    write_lora(comfy.loras_dir / "quantised.safetensors", targets, rank=4, seed=4)
    return "quantised.safetensors"


@pytest.fixture(scope="module")
def unet_tensors(comfy, slim_checkpoint):
    return slim_unet_tensors(comfy, slim_checkpoint)


@pytest.mark.parametrize("name", FORMATS)
def test_auto_keeps_the_effect_that_cores_merge_loses(comfy, unet_tensors, targets, lora, name):
    """The effect is x @ delta, in float64, whatever the base weight is."""
    import nodes

    base = quantised(unet_tensors, targets, name)
    factors = load_file(comfy.loras_dir / lora)
    auto, _, report = apply(base, None, one_row(lora, 0.5), "auto")
    core, _ = nodes.LoraLoader().load_lora(base, None, lora, 0.5, 0.0)

    (target,) = (t for t in targets if t.target_key == f"{LAYER}.weight")
    prefix = kohya_name(target)
    down, up = (factors[f"{prefix}.lora_{end}.weight"].double() for end in ("down", "up"))
    assert effect_error(base, auto, 0.5 * up @ down) < 1e-3
    assert effect_error(base, core, 0.5 * up @ down) > 0.05
    assert "runtime, LoRAs added in each forward pass" in report


def unet_output(patcher):
    from comfy import model_management

    model_management.load_models_gpu([patcher])
    unet = patcher.model.diffusion_model
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 77, 768)))
    dtype = next(unet.parameters()).dtype if unet.dtype == torch.float64 else torch.float32
    return unet(x.to(dtype), torch.tensor([500.0]).to(dtype), context.to(dtype)).double()


def in_float64(base):
    """The same base with the values of its weights, in float64."""
    from comfy import sd

    tensors = {}
    for key, weight in base.model.diffusion_model.named_parameters():
        is_packed = type(weight).__name__ == "QuantizedTensor"
        tensors[key] = weight.dequantize() if is_packed else weight.float()
    exact = sd.load_diffusion_model_state_dict(tensors, {"dtype": torch.float32})
    exact.model.double()
    exact.model.diffusion_model.dtype = torch.float64
    return exact


class Outputs:
    """Outputs of the whole UNet, as the base and an exact copy of it compute them."""

    def __init__(self, base, lora):
        self.base, self.lora, exact = base, lora, in_float64(base)
        self.of_base, self.of_exact = unet_output(base), unet_output(exact)
        merged = unet_output(apply(exact, None, one_row(lora), "merge")[0])
        self.effect = merged - self.of_exact

    def share(self, difference):
        """Of the size of the LoRA's effect."""
        return (difference.norm() / self.effect.norm()).item()

    def error(self, patched):
        """Of the effect that a LoRA has in a patched model."""
        return self.share(unet_output(patched) - self.of_base - self.effect)

    def error_of_auto(self):
        return self.error(apply(self.base, None, one_row(self.lora), "auto")[0])


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "int8_tensorwise"])
def test_auto_keeps_the_effect_of_the_whole_unet(unet_tensors, targets, lora, name):
    outputs = Outputs(quantised(unet_tensors, targets, name), lora)
    assert outputs.error_of_auto() < 1e-3


def test_on_int8_auto_leaves_the_effect_with_the_rounding_of_the_activations(
    unet_tensors, targets, lora
):
    """ComfyUI rounds what goes into an int8 layer, anew for each input, with LoRAs or without.

    Two independent roundings, with the LoRA and without, are sqrt(2) times the base's own error.
    """
    import nodes

    base = quantised(unet_tensors, targets, "int8_tensorwise")
    outputs = Outputs(base, lora)
    error, rounding = outputs.error_of_auto(), outputs.share(outputs.of_base - outputs.of_exact)
    assert error < 1.5 * rounding
    core, _ = nodes.LoraLoader().load_lora(base, None, lora, 1.0, 0.0)
    assert outputs.error(core) > 1.5 * error


def test_a_merge_says_what_it_loses(unet_tensors, targets, lora):
    base = quantised(unet_tensors, targets, "nvfp4")
    merge, _, report = apply(base, None, one_row(lora), "merge")
    assert len(merge.patches) == len(targets)
    assert "a merge rounds much of the LoRAs away" in report
