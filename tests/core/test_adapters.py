"""What adapters mean: laws, and numbers that can be checked by hand."""

import pytest
import torch
from torch.nn import functional

from lora_workbench.lora_core.adapters import DiffAdapter, LoraAdapter

from .toy_model import normal, product64, thin_tensors

# name, weight shape, Tucker core
SHAPES = {
    "linear": ((5, 6), False),
    "1x1 convolution": ((5, 6, 1, 1), False),
    "1-d convolution": ((5, 4, 3), False),
    "2-d convolution": ((5, 4, 3, 2), False),
    "3-d convolution": ((5, 4, 3, 2, 2), False),
    "Tucker": ((5, 4, 3, 2), True),
}
every_shape = pytest.mark.parametrize(("shape", "tucker"), SHAPES.values(), ids=SHAPES)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str
)


def adapter_of(tensors):
    parts = {key.removeprefix("m.lora_").removesuffix(".weight"): t for key, t in tensors.items()}
    return LoraAdapter(parts["down"], parts["up"], parts.get("mid"), parts["m.alpha"].item())


def make(shape, generator, tucker=False, dtype=torch.float32, rank=2):
    tensors = thin_tensors("m", shape, rank, generator, dtype=dtype, tucker=tucker)
    return adapter_of(tensors), product64(tensors, "m", shape)


@every_dtype
@every_shape
def test_delta_is_scale_times_up_times_down(shape, tucker, dtype, generator):
    adapter, expected = make(shape, generator, tucker, dtype)
    delta = adapter.delta(torch.empty(shape))
    assert delta.dtype == torch.float32
    torch.testing.assert_close(delta.double(), expected, rtol=1e-6, atol=1e-6)


@every_shape
def test_thin_factors_make_the_delta(shape, tucker, generator):
    adapter, expected = make(shape, generator, tucker)
    up, down = adapter.thin(shape)
    assert (up.shape, down.shape[0]) == ((shape[0], 2), 2)
    torch.testing.assert_close(
        (adapter.scale * up @ down).reshape(shape).double(), expected, rtol=1e-5, atol=1e-6
    )


@every_shape
def test_delta_is_linear_in_alpha(shape, tucker, generator):
    tensors = thin_tensors("m", shape, 2, generator, dtype=torch.float32, tucker=tucker)
    once = adapter_of(tensors).delta(torch.empty(shape))
    tripled = adapter_of(tensors | {"m.alpha": 3 * tensors["m.alpha"]}).delta(torch.empty(shape))
    torch.testing.assert_close(tripled, 3 * once)


@every_shape
def test_zero_up_changes_nothing(shape, tucker, generator):
    tensors = thin_tensors("m", shape, 2, generator, tucker=tucker)
    tensors["m.lora_up.weight"].zero_()
    assert not adapter_of(tensors).delta(torch.empty(shape)).any()


@every_shape
def test_delta_has_at_most_the_adapters_rank(shape, tucker, generator):
    adapter, _ = make(shape, generator, tucker)
    singular = torch.linalg.svdvals(adapter.delta(torch.empty(shape)).double().flatten(1))
    assert singular[2:].max() < 1e-6 * singular[0]


def test_a_merged_linear_layer_gives_the_unmerged_forward(generator):
    adapter, _ = make((5, 6), generator)
    x, base = normal((3, 6), generator), normal((5, 6), generator)
    unmerged = x @ base.t() + adapter.scale * (x @ adapter.down.t() @ adapter.up.t())
    torch.testing.assert_close(x @ (base + adapter.delta(base)).t(), unmerged)


@pytest.mark.parametrize("tucker", [False, True], ids=["LoCon", "Tucker"])
def test_a_merged_convolution_gives_the_unmerged_forward(tucker, generator):
    """Down, mid and up are three convolutions in the module that was trained."""
    adapter, _ = make((5, 4, 3, 2), generator, tucker)
    x, base = normal((2, 4, 7, 7), generator), normal((5, 4, 3, 2), generator)
    inside = functional.conv2d(x, adapter.down)
    if tucker:
        inside = functional.conv2d(inside, adapter.mid)
    unmerged = functional.conv2d(x, base) + adapter.scale * functional.conv2d(inside, adapter.up)
    merged = functional.conv2d(x, base + adapter.delta(base))
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-5)


def test_linear_and_1x1_convolution_factors_are_interchangeable(generator):
    adapter, expected = make((5, 6, 1, 1), generator)
    torch.testing.assert_close(
        adapter.delta(torch.empty(5, 6)).double(), expected.reshape(5, 6), rtol=1e-6, atol=1e-6
    )
    adapter, expected = make((5, 6), generator)
    assert adapter.delta(torch.empty(5, 6, 1, 1)).shape == (5, 6, 1, 1)


def test_the_adapter_of_its_own_tensors_is_equal(generator):
    for tucker in (False, True):
        adapter, _ = make((5, 4, 3, 3), generator, tucker)
        assert LoraAdapter(*adapter.tensors()).tensors() == adapter.tensors()
    diff = DiffAdapter(normal((3,), generator))
    assert DiffAdapter(*diff.tensors()).tensors() == diff.tensors()


def test_moving_keeps_dtype_alpha_and_bits(generator):
    adapter, _ = make((5, 4, 3, 3), generator, True, torch.float16)
    moved = adapter.to("cpu")
    assert moved.alpha == adapter.alpha
    assert all(torch.equal(a, b) for a, b in zip(moved.tensors(), adapter.tensors(), strict=True))
    assert DiffAdapter(torch.ones(2), 0.5).to("cpu").scale == 0.5


def test_moving_copies_even_to_the_same_device(generator):
    for adapter in (make((5, 4, 3, 3), generator, True)[0], DiffAdapter(torch.ones(2))):
        moved = adapter.to("cpu").tensors()
        assert {t.data_ptr() for t in moved}.isdisjoint(t.data_ptr() for t in adapter.tensors())


def test_worked_example():
    """Rank 1, alpha 3: delta = 3/1 * [[1], [2]] @ [[1, 0, -1]]."""
    adapter = LoraAdapter(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1.0], [2.0]]), None, 3.0)
    assert adapter.delta(torch.zeros(2, 3)).tolist() == [[3, 0, -3], [6, 0, -6]]


def test_tucker_worked_example():
    """One input, one output, rank 1: the delta is the core, times up 2 and down 3, alpha = rank."""
    one = torch.ones(1, 1, 1, 1)
    core = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    delta = LoraAdapter(3 * one, 2 * one, core).delta(torch.zeros(1, 1, 2, 2))
    assert delta.flatten().tolist() == [6, 12, 18, 24]


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (0.0, 1.0), (4.0, 2.0), (-1.0, -0.5)])
def test_scale_is_alpha_over_rank_and_1_without_alpha(alpha, scale):
    assert LoraAdapter(torch.ones(2, 3), torch.ones(4, 2), None, alpha).scale == scale


def test_a_plain_lora_leaves_the_extra_channels_of_an_inpainting_convolution_alone(generator):
    """9 input channels: 4 of the picture, 5 of mask and masked picture."""
    adapter, expected = make((6, 4, 3, 3), generator)
    delta = adapter.delta(torch.empty(6, 9, 3, 3))
    torch.testing.assert_close(delta[:, :4].double(), expected, rtol=1e-5, atol=1e-6)
    assert not delta[:, 4:].any()


def test_a_plain_difference_leaves_the_extra_channels_of_an_inpainting_convolution_alone(generator):
    diff = normal((6, 4, 3, 3), generator)
    delta = DiffAdapter(diff).delta(torch.empty(6, 9, 3, 3))
    assert torch.equal(delta[:, :4], diff)
    assert not delta[:, 4:].any()


@every_dtype
def test_a_difference_is_the_delta_times_its_scale(dtype, generator):
    diff = normal((4, 3), generator, dtype=dtype)
    delta = DiffAdapter(diff, 0.5).delta(torch.empty(4, 3))
    assert delta.dtype == torch.float32
    assert torch.equal(delta, diff.float() / 2)


def test_a_difference_takes_the_weights_shape(generator):
    diff = normal((4, 3, 1, 1), generator)
    assert DiffAdapter(diff).delta(torch.empty(4, 3)).shape == (4, 3)
    assert DiffAdapter(diff).matrix((4, 3)).rows(slice(None)).shape == (4, 3)
