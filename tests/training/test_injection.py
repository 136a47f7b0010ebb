"""Factors beside frozen weights: nothing at first, nothing left afterwards."""

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.config import AdapterConfig, TargetRule
from lora_workbench.training.dropout import Draws
from lora_workbench.training.injection import ejected, injected
from lora_workbench.training.targets import choose_targets
from lora_workbench.training.trainable import PictureSize

from ..headless.tiny_pipeline import bits_of, same_bits
from .runs import Quiet, run, short_run, tiny_trainable

SIZES = [PictureSize((64, 64), (0, 0), (64, 64))]


def inject(model, adapter):
    targets = choose_targets(model.parts, model.weights, adapter)
    return injected(model.parts, targets, adapter, 0, Draws(0))


def answer(model):
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    texts = model.encode_captions(["a boat"])
    return model.predict(noisy, torch.tensor([300]), model.conditions(texts, SIZES))


def shape_of(module):
    """Everything but the numbers: classes, names, modes, flags, hooks, forwards."""
    return [
        (name, type(each), each.training, sorted(vars(each)), len(each._forward_hooks))
        for name, each in module.named_modules()
    ] + [(name, p.requires_grad, p.dtype, p.shape) for name, p in module.named_parameters()]


@pytest.mark.parametrize(
    "adapter",
    [
        AdapterConfig(rank=4, targets=("unet",), text_encoder=("te",)),
        AdapterConfig(rank=4, method="dora"),
        AdapterConfig(rank=2, start="pissa"),
        AdapterConfig(rank=4, rslora=True, dropout=0.5),
        AdapterConfig("loha", 2, dropout=0.5, targets=("unet",), text_encoder=("te",)),
        AdapterConfig("lokr", factor=4, full_matrix=True, targets=("unet",), text_encoder=("te",)),
        AdapterConfig("oft", 2, rescale=True, targets=("unet",), text_encoder=("te",)),
    ],
    ids=["everything", "dora", "pissa", "rslora and dropout", "loha", "lokr", "oft"],
)
def test_the_base_is_restored(adapter, tmp_path):
    """Design 3: the same bits, module tree, names and forwards, after a run and after an error."""
    model = tiny_trainable()
    before = answer(model)  # transformers notes its hooks at the first call
    bits = {name: bits_of(part) for name, part in model.parts.items()}
    shapes = {name: shape_of(part) for name, part in model.parts.items()}
    run(short_run(adapter, steps=2), tmp_path, model=model)
    with pytest.raises(KeyboardInterrupt):
        run(short_run(adapter, steps=2), tmp_path / "b", model, watcher=Quiet(raise_after=1))
    assert all(same_bits(bits_of(part), bits[name]) for name, part in model.parts.items())
    assert {name: shape_of(part) for name, part in model.parts.items()} == shapes
    assert torch.equal(answer(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"rslora": True}, {"method": "dora", "targets": ("unet",)}], ids=str
)
def test_the_first_forward_is_the_base_s_bit_for_bit(options, dtype):
    model = tiny_trainable(dtype)
    before = answer(model)
    with inject(model, AdapterConfig(rank=4, **options)), torch.no_grad():
        assert torch.equal(answer(model), before)


@pytest.mark.parametrize("start", ["zero", "pissa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dora_s_magnitudes_are_the_norms_of_the_base(start, dtype):
    """So that a file of no step changes no weight; rounded to a half they are off by 2e-3."""
    model = tiny_trainable(dtype)
    adapter = AdapterConfig(rank=2, method="dora", start=start, targets=("unet",))
    weights = {
        target.canonical: model.parts["unet"].get_submodule(name).weight.detach().double()
        for name, target in model.weights["unet"].items()
    }
    with inject(model, adapter) as factors:
        for each in factors:
            norms = weights[each.trained.target.canonical].flatten(1).norm(dim=1)
            found = each.learnt().magnitude.double()
            torch.testing.assert_close(found, norms, rtol=1e-6, atol=0)


def test_pissa_starts_where_the_base_is():
    model = tiny_trainable()
    before = answer(model)
    with inject(model, AdapterConfig(rank=2, start="pissa")) as factors, torch.no_grad():
        torch.testing.assert_close(answer(model), before, rtol=1e-4, atol=1e-5)
        assert all(each.up.abs().sum() > 0 for each in factors)


def test_only_the_factors_are_trained_and_all_of_them_are_float32():
    model = tiny_trainable(torch.bfloat16)
    adapter = AdapterConfig(rank=4, method="dora", text_encoder=("te1 & q",))
    with inject(model, adapter) as factors:
        ours = {id(p) for each in factors for p in each.parameters.values()}
        trained = [p for part in model.parts.values() for p in part.parameters() if p.requires_grad]
        assert {id(parameter) for parameter in trained} == ours
        assert {parameter.dtype for parameter in trained} == {torch.float32}


def test_the_trained_numbers_are_rank_times_inputs_and_outputs():
    model = tiny_trainable()
    with inject(model, AdapterConfig(rank=3, targets=("attn", "ff", "conv"))) as factors:
        for each in factors:
            out, inside, *kernel = each.trained.target.shape
            count = sum(parameter.numel() for parameter in each.parameters.values())
            assert count == 3 * (out + inside * torch.Size(kernel).numel())


def test_rules_change_rank_and_alpha_and_take_targets_out():
    rules = (TargetRule("attn2", rank=2, alpha=6.0), TargetRule("attn1 & v", rank=0))
    adapter = AdapterConfig(rank=4, alpha=8, targets=("attn",), rules=rules)
    with inject(tiny_trainable(), adapter) as factors:
        found = {each.trained.target.canonical: each for each in factors}
        assert not any(name.endswith("attn1.to_v.weight") for name in found)
        for name, each in found.items():
            wanted = (2, 6 / 2) if ".attn2." in name else (4, 8 / 4)
            assert (each.down.shape[0], each.layer.scaling["default"]) == wanted


def test_ejected_is_the_bare_model_for_a_while():
    model = tiny_trainable()
    before = answer(model)
    with inject(model, AdapterConfig(rank=4)) as factors, torch.no_grad():
        for each in factors:
            each.up.fill_(0.5)
        changed = answer(model)
        assert not torch.equal(changed, before)
        with ejected(factors):
            assert torch.equal(answer(model), before)
        assert torch.equal(answer(model), changed)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (AdapterConfig(targets=("IN09",)), "names no weight"),
        (AdapterConfig(targets=()), "Nothing is trained"),
        (AdapterConfig(rules=(TargetRule("te1", rank=2),)), "names no trained weight"),
        (AdapterConfig(targets=("atn",)), "Unknown selector"),
    ],
)
def test_targets_that_name_nothing_are_refused(adapter, said):
    model = tiny_trainable()
    with pytest.raises(LoraError, match=said):
        choose_targets(model.parts, model.weights, adapter)
