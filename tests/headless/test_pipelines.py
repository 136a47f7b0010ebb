"""LoRAs on a diffusers pipeline from Python."""

import copy

import peft
import pytest
import torch

import lora_workbench
from lora_workbench.hosts.embedded.pipelines import pipeline_weights
from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.stack import StackItem

from .tiny_pipeline import bits_of, lora_for, same_bits, tiny_pipeline


@pytest.fixture
def pipe():
    return tiny_pipeline()


def output_of(pipe):
    latents = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)
    with torch.inference_mode():
        states = pipe.text_encoder(torch.tensor([[49406, 320, 49407]])).last_hidden_state
        return pipe.unet(latents, 500, states).sample


def test_a_stack_works_inside_the_block_and_the_base_is_back_after_it(pipe, generator):
    weights = pipeline_weights(pipe)
    lora = lora_for(weights, "a", generator)
    base, plain = bits_of(pipe.unet) | bits_of(pipe.text_encoder), output_of(pipe)
    with lora_workbench.applied(pipe, [StackItem(lora, 0.5, -0.25)]) as inside:
        assert inside is pipe
        assert not torch.equal(output_of(pipe), plain)
        key = next(key for key in weights if key.endswith("attn1.to_q.weight"))
        module = key.removesuffix(".weight")
        data = lora.file.read_many(lora.file.tensors)
        up, down = data[f"{module}.lora_B.weight"], data[f"{module}.lora_A.weight"]
        expected = base[key.removeprefix("unet.")].double() + 0.5 * up.double() @ down.double()
        torch.testing.assert_close(weights[key].double(), expected, rtol=0, atol=1e-7)
    assert same_bits(bits_of(pipe.unet) | bits_of(pipe.text_encoder), base)
    assert torch.equal(output_of(pipe), plain)


def test_a_dora_that_peft_trained_works_inside_the_block(pipe, generator):
    """PEFT merges the same adapter into the same UNet."""
    config = peft.LoraConfig(r=2, lora_alpha=2, use_dora=True, target_modules=["to_q", "conv1"])
    unet, plain = pipe.unet, output_of(pipe)
    trained = peft.inject_adapter_in_model(config, copy.deepcopy(unet))
    for name, parameter in trained.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "lora_magnitude" in name:
            parameter.data *= 1 + 0.1 * noise
        elif "lora_" in name:
            parameter.data.copy_(0.1 * noise)
    state = peft.get_peft_model_state_dict(trained)
    tensors = {f"unet.{key}": value.detach().clone() for key, value in state.items()}
    pipe.unet = trained
    expected = output_of(pipe)
    pipe.unet, base = unet, bits_of(unet)
    lora = lora_from_tensors("dora", tensors)
    assert {module.kind for module in lora.modules.values()} == {"dora"}
    with lora_workbench.applied(pipe, [StackItem(lora)]):
        got = output_of(pipe)
    assert (expected - plain).norm() > 1e-2 * plain.norm()
    assert (got - expected).norm() <= 1e-5 * expected.norm()
    assert same_bits(bits_of(pipe.unet), base)


@pytest.mark.parametrize("algo", ["loha", "lokr", "diag-oft"])
def test_a_network_that_lycoris_trained_works_inside_the_block(algo, pipe, generator):
    """Its own wrapper on the same UNet; files of it name modules ``lycoris_...``."""
    wrapper = pytest.importorskip("lycoris.wrapper", reason="the extra [lycoris] is missing")
    unet, plain = pipe.unet, output_of(pipe)
    trained = copy.deepcopy(unet)
    wrapper.LycorisNetwork.apply_preset({"target_module": ["Attention", "ResnetBlock2D"]})
    network = wrapper.create_lycoris(trained, 1.0, linear_dim=2, linear_alpha=1, algo=algo)
    network.apply_to()
    for parameter in network.parameters():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    network.eval()
    tensors = {key: value.detach().clone() for key, value in network.state_dict().items()}
    pipe.unet = trained
    with torch.no_grad():
        expected = output_of(pipe)
    pipe.unet, base = unet, bits_of(unet)
    lora = lora_from_tensors("lycoris", tensors)
    assert {m.kind for m in lora.modules.values()} == {algo.removeprefix("diag-")}
    with lora_workbench.applied(pipe, [StackItem(lora)]):
        got = output_of(pipe)
    assert (expected - plain).norm() > 1e-2 * plain.norm()
    assert (got - expected).norm() <= 1e-5 * expected.norm()
    assert same_bits(bits_of(pipe.unet), base)


def test_an_error_inside_the_block_brings_the_base_back(pipe, generator):
    lora, base = lora_for(pipeline_weights(pipe), "a", generator), bits_of(pipe.unet)
    with pytest.raises(ZeroDivisionError), lora_workbench.applied(pipe, [StackItem(lora)]):
        raise ZeroDivisionError
    assert same_bits(bits_of(pipe.unet), base)


def test_files_and_strengths_are_stacks_too(pipe, generator, tmp_path):
    lora = lora_for(pipeline_weights(pipe), "a", generator)
    write_safetensors(tmp_path / "a.safetensors", lora.file.read_many(lora.file.tensors))
    base = bits_of(pipe.unet)
    ledger = lora_workbench.merge(pipe, [(tmp_path / "a.safetensors", 0.7)])
    by_file = bits_of(pipe.unet)
    ledger.unmerge()
    assert same_bits(bits_of(pipe.unet), base)
    lora_workbench.merge(pipe, [StackItem(lora, 0.7, 0.7)])
    assert same_bits(bits_of(pipe.unet), by_file)


def test_a_pipeline_with_loras_of_another_library_is_refused(pipe, generator):
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(LoraError, match=r"carries LoRAs of diffusers[\s\S]*unload_lora_weights"):
        lora_workbench.merge(pipe, [])


def test_an_object_without_modules_is_refused():
    with pytest.raises(LoraError, match="neither a UNet nor a text encoder"):
        lora_workbench.merge(object(), [])
