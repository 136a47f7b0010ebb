"""Our adapter inside ComfyUI's own ``calculate_weight``, against float64."""

import importlib

import pytest
import torch

STRENGTH = 0.5


@pytest.fixture
def adapter_class(comfy):
    module = importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.adapter")
    return module.FusedLoraAdapter


def factors(out, columns, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, columns, generator=generator).half()
    up = torch.randn(out, rank, generator=generator).half()
    return down, up


def weights(*entries, has_function=False):
    """The adapter's state, of (kind, coefficient, alpha or scale, transposed, tensors) per LoRA."""
    return (has_function, *((*entry, number) for number, entry in enumerate(entries)))


def calculate(adapter, weight, offset=None, function=None, strength=STRENGTH):
    from comfy import lora

    with torch.inference_mode():
        record = (strength, adapter, 1.0, offset, function)
        return lora.calculate_weight([record], weight.clone(), "key")


def expected(weight, *deltas):
    return weight.double() + sum(deltas)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_two_loras_and_a_difference_are_added_in_one_pass(adapter_class, dtype):
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    (d1, u1), (d2, u2) = factors(7, 5, 2, 1), factors(7, 5, 3, 2)
    diff = torch.full((7, 5), 0.25)
    adapter = adapter_class(
        set(),
        weights(
            ("lora", 0.8, 1.0, False, (d1, u1)),
            ("lora", -0.5, None, False, (d2, u2)),
            ("diff", 2.0, 1.0, False, (diff,)),
        ),
    )
    wanted = expected(
        weight,
        STRENGTH * 0.8 * 0.5 * (u1.double() @ d1.double()),
        STRENGTH * -0.5 * (u2.double() @ d2.double()),
        STRENGTH * 2.0 * diff.double(),
    )
    got = calculate(adapter, weight)
    assert got.dtype == dtype
    torch.testing.assert_close(got, wanted.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("offset", [(0, 2, 3), (1, 1, 4)])
def test_an_offset_changes_only_its_view(adapter_class, offset):
    """As ComfyUI maps q, k, v into a fused weight (rows) and Flux's linear2 (columns)."""
    weight = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    dim, start, length = offset
    shape = [9, 6]
    shape[dim] = length
    down, up = factors(*shape, rank=2, seed=3)
    adapter = adapter_class(set(), weights(("lora", 1.0, None, False, (down, up))))
    wanted = weight.double()
    wanted.narrow(dim, start, length).add_(STRENGTH * (up.double() @ down.double()))
    got = calculate(adapter, weight, offset=offset)
    torch.testing.assert_close(got, wanted.float(), rtol=1e-6, atol=1e-6)
    untouched = torch.ones_like(weight, dtype=torch.bool)
    untouched.narrow(dim, start, length).fill_(False)
    assert torch.equal(got[untouched], weight[untouched])


def test_a_function_of_the_key_map_takes_the_delta(adapter_class):
    """As ComfyUI swaps the halves of Flux's final modulation."""
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    down, up = factors(6, 5, 2, 4)

    def swapped(delta):
        return torch.cat([delta[3:], delta[:3]])

    entry = ("lora", 1.0, None, False, (down, up))
    adapter = adapter_class(set(), weights(entry, has_function=True))
    delta = STRENGTH * (up.double() @ down.double())
    got = calculate(adapter, weight, function=swapped)
    torch.testing.assert_close(got, expected(weight, swapped(delta)).float(), rtol=1e-6, atol=1e-6)


def test_a_convolution_and_a_transposed_projection_keep_their_shapes(adapter_class):
    kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    down, up = factors(4, 27, 2, 5)
    adapter = adapter_class(
        set(), weights(("lora", 1.0, None, False, (down.reshape(2, 3, 3, 3), up)))
    )
    wanted = expected(kernel, (STRENGTH * up.double() @ down.double()).reshape(kernel.shape))
    torch.testing.assert_close(calculate(adapter, kernel), wanted.float(), rtol=1e-6, atol=1e-6)

    projection = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    down, up = factors(4, 6, 2, 6)  # (out, in) of the linear layer that files address
    adapter = adapter_class(set(), weights(("lora", 1.0, None, True, (down, up))))
    wanted = expected(projection, STRENGTH * (up.double() @ down.double()).t())
    torch.testing.assert_close(calculate(adapter, projection), wanted.float(), rtol=1e-6, atol=1e-6)


def test_the_adapter_is_all_in_its_constructor(adapter_class):
    """Dynamic patchers rebuild adapters from ``loaded_keys`` and ``weights`` alone."""
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    first = adapter_class({"a"}, weights(("lora", 0.7, 2.0, False, factors(7, 5, 2, 7))))
    again = type(first)(first.loaded_keys, first.weights)
    assert torch.equal(calculate(again, weight), calculate(first, weight))
    assert first.calculate_shape("key") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_pass_gives_the_bits_of_core_which_rounds_a_float32_copy(adapter_class, dtype):
    base_weight = torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    adapter = adapter_class(set(), weights(("lora", 0.7, 2.0, False, factors(7, 45, 2, 7))))
    before = base_weight.clone()
    merged = adapter.merged(base_weight)
    assert torch.equal(merged, calculate(adapter, base_weight.float(), strength=1.0).to(dtype))
    assert merged.dtype == dtype
    assert torch.equal(base_weight, before)


def test_a_signature_tells_strengths_and_files_apart_and_copies_not(adapter_class):
    def signature(coefficient, source):
        down, up = factors(7, 5, 2, 7)
        return adapter_class(
            set(), (False, ("lora", coefficient, None, False, (down, up), source))
        ).signature

    assert signature(0.5, ("file", "a")) == signature(0.5, ("file", "a"))
    assert signature(0.5, ("file", "a")) != signature(0.25, ("file", "a"))
    assert signature(0.5, ("file", "a")) != signature(0.5, ("file", "b"))
