"""Conditioning of the embedded host: laws on small random encoders."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_workbench.hosts.embedded.parts import TextPart
from lora_workbench.hosts.embedded.text import encode
from lora_workbench.hosts.embedded.text.tokenizer import clip_tokenizer
from lora_workbench.hosts.embedded.text.tokens import tokenize

LAYERS, WIDTH = {"l": 3, "h": 4, "g": 5}, {"l": 24, "h": 32, "g": 40}
FAMILIES = {"sd15": ("l",), "sd2": ("h",), "sdxl": ("l", "g"), "sdxl-refiner": ("g",)}


def encoder_of(name, model_class=None):
    config = CLIPTextConfig(
        num_hidden_layers=LAYERS[name],
        hidden_size=WIDTH[name],
        projection_dim=WIDTH[name],
        intermediate_size=3 * WIDTH[name],
        num_attention_heads=4,
        eos_token_id=49407,
    )
    model_class = model_class or (CLIPTextModel if name == "l" else CLIPTextModelWithProjection)
    module = model_class(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(ord(name))
    for key, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = (1 + 0.1 * noise) if "norm" in key else 0.3 * noise
    return module


@pytest.fixture(scope="module")
def parts():
    """A text part by family."""
    modules = {name: encoder_of(name) for name in WIDTH}
    return {
        family: TextPart({name: modules[name] for name in names}, family, {})
        for family, names in FAMILIES.items()
    }


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Small products: threads would only wait for one another."""
    threads(1)


@pytest.fixture(params=FAMILIES)
def part(request, parts):
    return parts[request.param]


def position_of(text, word):
    """Where the only token of a word stands in the first chunk."""
    (token,) = clip_tokenizer()(word)
    return [each.id for each in tokenize(text, "l", clip_tokenizer())[0]].index(token)


def test_shapes_are_77_by_the_sum_of_the_widths(part):
    found = encode(part, "cat " * 100)
    widths = [WIDTH[name] for name in part.encoders]
    assert found.states.shape == (1, 2 * 77, sum(widths))
    assert found.pooled.shape == (1, widths[-1])
    assert found.states.dtype == found.pooled.dtype == torch.float32


def test_a_weight_interpolates_between_the_empty_prompt_and_the_prompt(part):
    """In float64, from the states of the unweighted prompts: at the word itself, nowhere else."""
    plain, empty = (encode(part, text).states.double() for text in ("a red cat", ""))
    at = position_of("a red cat", "red")
    expected = plain.clone()
    expected[:, at] = empty[:, at] + 1.7 * (plain[:, at] - empty[:, at])
    found = encode(part, "a (red:1.7) cat").states.double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_neither_weights_nor_clip_skip_change_the_pooled_vector(part):
    plain = encode(part, "a red cat").pooled
    for text, skip in (("a (red:1.7) cat", None), ("a red cat", -3)):
        torch.testing.assert_close(encode(part, text, skip).pooled, plain)


def test_later_chunks_change_neither_the_first_nor_the_pooled_vector(part):
    short, long = encode(part, "cat " * 75), encode(part, "cat " * 75 + "dog")
    torch.testing.assert_close(long.states[:, :77], short.states)
    torch.testing.assert_close(long.pooled, short.pooled)


def test_a_layer_that_an_encoder_does_not_have_is_the_family_s_own(part):
    torch.testing.assert_close(encode(part, "a cat", -24).states, encode(part, "a cat").states)


def ids_of(text, name):
    return torch.tensor([[token.id for token in tokenize(text, name, clip_tokenizer())[0]]])


def test_a_weight_of_one_changes_no_bit(parts):
    """Beside a weighted word, against transformers with the same two prompts in its batch."""
    ids = torch.cat([ids_of("a red cat", "l"), ids_of("", "l")])
    theirs = parts["sd15"].encoders["l"](ids).last_hidden_state[:1]
    others = torch.arange(77) != position_of("a red cat", "red")
    found = encode(parts["sd15"], "a (red:1.7) cat").states
    assert torch.equal(found[:, others], theirs[:, others])


def test_sd15_reads_what_transformers_gives_as_its_last_state(parts):
    theirs = parts["sd15"].encoders["l"](ids_of("a red cat", "l"))
    found = encode(parts["sd15"], "a red cat")
    torch.testing.assert_close(found.states, theirs.last_hidden_state)
    torch.testing.assert_close(found.pooled, theirs.pooler_output)


def test_sdxl_joins_the_last_layers_but_one_and_pools_by_the_second_encoder(parts):
    encoders = parts["sdxl"].encoders
    theirs = {
        name: module(ids_of("a red cat", name), output_hidden_states=True)
        for name, module in encoders.items()
    }
    expected = torch.cat([theirs[name].hidden_states[-2] for name in ("l", "g")], dim=-1)
    found = encode(parts["sdxl"], "a red cat")
    torch.testing.assert_close(found.states, expected)
    torch.testing.assert_close(found.pooled, theirs["g"].text_embeds)


def test_sd2_without_a_projection_has_no_pooled_vector():
    part = TextPart({"h": encoder_of("h", CLIPTextModel)}, "sd2", {})
    found = encode(part, "a cat")
    assert found.pooled is None
    assert found.states.shape == (1, 77, WIDTH["h"])


def test_no_gradient_is_kept(parts):
    part = parts["sd15"]
    weight = next(part.encoders["l"].parameters())
    weight.requires_grad_(True)
    found = encode(part, "a cat")
    weight.requires_grad_(False)
    assert not found.states.requires_grad


def test_sd2_without_its_last_layer_is_read_at_the_same_layer(monkeypatch):
    """diffusers' folders of SD2 have 23 of the 24 layers."""
    encoders = []
    for layers in (24, 23):
        monkeypatch.setitem(LAYERS, "h", layers)
        encoders.append(encoder_of("h"))
    whole, cut = encoders
    cut.load_state_dict({name: whole.state_dict()[name] for name in cut.state_dict()})
    for skip in (None, -2, -3, -24):
        left, right = (encode(TextPart({"h": e}, "sd2", {}), "a fox", skip) for e in encoders)
        assert torch.equal(left.states, right.states), skip
