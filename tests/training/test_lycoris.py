"""LoHa, LoKr and OFT beside frozen weights: LyCORIS' own losses, numbers and forwards."""

import importlib.util
import math

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.checks import check_settings
from lora_workbench.training.config import (
    AdapterConfig,
    OptimizerConfig,
    TargetRule,
    TrainConfig,
)
from lora_workbench.training.dropout import Draws
from lora_workbench.training.injection import ejected, injected
from lora_workbench.training.kinds import role_sizes
from lora_workbench.training.targets import choose_targets
from lora_workbench.training.trainable import PictureSize

from ..headless.tiny_pipeline import tiny_unet
from .lycoris_cases import KINDS, adapter, fill, lycoris_delta, lycoris_module
from .plain_loop import plain_losses
from .runs import ListFeed, run, short_run, tiny_trainable
from .test_parity import StopAtOnce

STEPS = 20
WHERE = ("attn", "ff", "proj", "conv")
SIZES = [PictureSize((64, 64), (0, 0), (64, 64))]


def inject(model, config, precision="fp32", draws=None):
    targets = choose_targets(model.parts, model.weights, config)
    return injected(model.parts, targets, config, 0, draws or Draws(0), precision)


def answer(model):
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    texts = model.encode_captions(["a boat"])
    return model.predict(noisy, torch.tensor([300]), model.conditions(texts, SIZES))


def lycoris_unet(kind, start):
    """The tiny UNet under LyCORIS' layers as they start, and their parameters.

    LyCORIS rebuilds the weights, as is its default.
    """
    unet, trainable, layers = tiny_unet(), tiny_trainable(), []
    for path, target in trainable.weights["unet"].items():
        if any(name.startswith(f"{target.canonical}.") for name in start):
            layer = lycoris_module(kind, unet.get_submodule(path))
            with torch.no_grad():
                for role, parameter in layer.named_parameters():
                    parameter.copy_(start[f"{target.canonical}.{role}"])
            layer.apply_to()
            layers.append(layer)
    trained = [parameter for layer in layers for parameter in layer.parameters()]
    assert len(trained) == len(start)
    return unet, trained


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_a_plain_loop(kind, tmp_path):
    """Same start, noise and order. OFT's biases are not turned: a file cannot say it."""
    config = short_run(adapter(kind, targets=WHERE), OptimizerConfig(rate=2e-3), steps=STEPS)
    start, _ = run(config, tmp_path / "start", watcher=StopAtOnce())
    end, losses = run(config, tmp_path / "run")
    wanted = plain_losses(*lycoris_unet(kind, start), config, ListFeed(), STEPS)
    assert losses == pytest.approx(wanted, abs=1e-5)
    moved = [bool((end[name] - start[name]).abs().max() > STEPS * 1e-4) for name in start]
    assert sum(moved) > 0.9 * len(moved)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_forward_is_the_base_s_bit_for_bit(kind):
    model = tiny_trainable()
    before = answer(model)
    with inject(model, adapter(kind, targets=WHERE)) as factors, torch.no_grad():
        assert torch.equal(answer(model), before)
        fill(factors)
        changed = answer(model)
        assert not torch.allclose(changed, before, rtol=1e-3)
        with ejected(factors):
            assert torch.equal(answer(model), before)
        assert torch.equal(answer(model), changed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_is_that_of_the_changed_weights(kind):
    """W + delta by LyCORIS in the bare model, biases as they were."""
    model, merged = tiny_trainable(), tiny_trainable()
    with inject(model, adapter(kind, targets=WHERE)) as factors, torch.no_grad():
        fill(factors)
        for each in factors:
            part = merged.parts[each.trained.component]
            weight = part.get_submodule(each.trained.module).weight
            weight += lycoris_delta(each.layer).reshape(weight.shape).to(weight)
        wanted, found = answer(merged), answer(model)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


@pytest.mark.parametrize("kind", ["loha", "lokr of a factor", "oft", "oft rescaled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_half_base_trains_float32_factors_and_keeps_its_dtype(kind, precision):
    model = tiny_trainable(torch.bfloat16)
    with inject(model, adapter(kind, targets=WHERE), precision) as factors:
        ours = {id(p) for each in factors for p in each.parameters.values()}
        parts = [p for part in model.parts.values() for p in part.parameters()]
        assert not any(parameter.requires_grad for parameter in parts)
        fill(factors)
        seen = []
        hooks = [
            model.parts["unet"].get_submodule(each.trained.module)
            .register_forward_hook(lambda *call: seen.append(call[2].dtype))
            for each in factors
        ]  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            answer(model).float().square().mean().backward()
        for hook in hooks:
            hook.remove()
        assert set(seen) == {torch.bfloat16}
        trained = [p for each in factors for p in each.parameters.values()]
        assert {id(p) for p in trained} == ours
        assert {p.dtype for p in trained} == {torch.float32}
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_turns_of_a_half_base_keep_their_digits(precision):
    """Under autocast R would be bf16, whose diagonal near 1 has few digits."""
    model = tiny_trainable(torch.bfloat16)
    with inject(model, adapter("oft", targets=("attn1 & q",)), precision) as factors:
        fill(factors, std=0.01)
        (first, *_) = factors
        module = model.parts["unet"].get_submodule(first.trained.module)
        x = torch.randn(64, module.in_features, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            change = first._turned(first._bare(x.bfloat16())).double()
        wanted = x.bfloat16().double() @ lycoris_delta(first.layer).T
    assert (change - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_the_trained_numbers_are_those_of_the_formulas(kind):
    config = adapter(kind, targets=WHERE)
    with inject(tiny_trainable(), config) as factors:
        for each in factors:
            counts = {role: p.numel() for role, p in each.parameters.items()}
            assert role_sizes(each.trained.target.shape, each.trained.rank, config) == counts


@pytest.mark.parametrize(
    ("config", "shape", "count"),
    [
        (AdapterConfig("loha", 16), (320, 768), 2 * 16 * (320 + 768)),
        (AdapterConfig("loha", 4), (640, 320, 3, 3), 2 * 4 * (640 + 320 * 9)),
        (
            AdapterConfig("loha", 4, tucker=True),
            (640, 320, 3, 3),
            2 * (4 * (640 + 320) + 4 * 4 * 9),
        ),
        (AdapterConfig("lokr", 4, factor=8), (320, 768), 8 * 8 + 4 * (40 + 96)),
        (AdapterConfig("lokr", factor=8, full_matrix=True), (320, 768), 8 * 8 + 40 * 96),
        (AdapterConfig("lokr", factor=8, full_matrix=True), (320, 64, 3, 3), 64 + 40 * 8 * 9),
        (AdapterConfig("oft", 16), (320, 768), 20 * 16 * 16),
        (AdapterConfig("oft", 16, rescale=True), (1280, 320, 3, 3), 80 * 16 * 16 + 1280),
        (AdapterConfig("dora", 16), (320, 768), 16 * (320 + 768) + 320),
    ],
)
def test_the_numbers_of_real_weights(config, shape, count):
    assert sum(role_sizes(shape, config.rank, config).values()) == count


@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_factors_start_by_seed_and_name_alone(method):
    model, found = tiny_trainable(), []
    config = AdapterConfig(method, 2, targets=("attn1 & q",))
    targets = choose_targets(model.parts, model.weights, config)
    for global_seed, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(global_seed)
        expected = torch.get_rng_state()
        with injected(model.parts, targets, config, seed, Draws(0)) as factors:
            assert torch.equal(torch.get_rng_state(), expected)
            found.append([p.detach().clone() for f in factors for p in f.parameters.values()])
            first, second = ([*f.parameters.values()] for f in factors[:2])
            assert not all(torch.equal(*pair) for pair in zip(first, second, strict=True)
                           if pair[0].shape == pair[1].shape)  # fmt: skip
    assert all(torch.equal(*pair) for pair in zip(*found[:2], strict=True))
    assert not all(torch.equal(*pair) for pair in zip(found[0], found[2], strict=True))


@pytest.mark.parametrize("kind", ["loha", "lokr of a factor"])
def test_without_autocast_a_half_base_is_added_to_in_float32(kind):
    with inject(tiny_trainable(torch.bfloat16), adapter(kind, targets=("ff",))) as factors:
        fill(factors)
        for each in factors:
            delta = lycoris_delta(each.layer)
            x = torch.randn(8, delta.shape[1], generator=torch.Generator().manual_seed(1))
            x = x.bfloat16()
            with torch.no_grad():
                torch.testing.assert_close(each._added(x).double(), x.double() @ delta.T,
                                           rtol=1e-4, atol=1e-5)  # fmt: skip


def test_rules_change_rank_and_alpha():
    rules = (TargetRule("attn2", rank=2, alpha=6.0), TargetRule("attn1 & v", rank=0))
    config = AdapterConfig("loha", 3, 6.0, targets=("attn",), rules=rules)
    with inject(tiny_trainable(), config) as factors:
        for each in factors:
            name = each.trained.target.canonical
            assert not name.endswith("attn1.to_v.weight")
            wanted = (2, 6.0) if ".attn2." in name else (3, 6.0)
            learnt = each.learnt()
            assert (learnt.factors["hada_w1_b"].shape[0], learnt.alpha) == wanted


IDLE = [
    ("adapter.rslora", {"method": "loha", "rslora": True}),
    ("adapter.start", {"method": "lokr", "start": "pissa"}),
    ("adapter.alpha", {"method": "oft", "alpha": 4.0}),
    ("adapter.dropout", {"method": "oft", "dropout": 0.1}),
    ("adapter.constraint", {"method": "loha", "constraint": 0.1}),
    ("adapter.rescale", {"rescale": True}),
    ("adapter.factor", {"method": "loha", "factor": 8}),
    ("adapter.decompose_both", {"decompose_both": True}),
    ("adapter.full_matrix", {"method": "oft", "full_matrix": True}),
    ("adapter.tucker", {"method": "lokr", "tucker": True}),
    ("adapter.rank", {"method": "lokr", "full_matrix": True, "rank": 4}),
    ("adapter.alpha", {"method": "lokr", "full_matrix": True, "alpha": 4.0}),
    ("adapter.decompose_both", {"method": "lokr", "full_matrix": True, "decompose_both": True}),
    ("adapter.rules.alpha", {"method": "oft", "rules": (TargetRule("attn2", alpha=2.0),)}),
]


@pytest.mark.parametrize(("name", "options"), IDLE)
def test_what_a_method_does_not_read_is_refused(name, options):
    with pytest.raises(LoraError, match=f"{name} would do nothing"):
        check_settings(TrainConfig(adapter=AdapterConfig(**options)))


@pytest.mark.parametrize("method", ["loha", "lokr", "oft"])
def test_lora_plus_is_of_two_factors(method):
    plus = TrainConfig(AdapterConfig(method), OptimizerConfig(lora_plus=4.0))
    with pytest.raises(LoraError, match=r"lora_plus would do nothing"):
        check_settings(plus)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adapter.tucker", {"method": "loha", "tucker": True, "targets": ("attn",)}),
        ("adapter.decompose_both", {"method": "lokr", "decompose_both": True, "rank": 8}),
        ("adapter.alpha", {"method": "lokr", "rank": 8, "alpha": 2.0}),
        (
            "The alpha of the rule 'attn2'",
            {"method": "lokr", "rank": 1, "rules": (TargetRule("attn2", rank=8, alpha=2.0),)},
        ),
    ],
)
def test_what_no_target_has_a_use_for_is_refused(name, options):
    model = tiny_trainable()
    with pytest.raises(LoraError, match=f"{name} would do nothing"):
        choose_targets(model.parts, model.weights, AdapterConfig(**options))


def test_blocks_of_one_output_are_refused():
    """LyCORIS splits 8 outputs by rank 8 in 8 blocks of one, which no turn changes."""
    model = tiny_trainable()
    with pytest.raises(LoraError, match="OFT would learn nothing of") as error:
        choose_targets(model.parts, model.weights, AdapterConfig("oft", 8))
    assert "Outputs: 8" in str(error.value)
    assert choose_targets(model.parts, model.weights, AdapterConfig("oft", 8, rescale=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_passes(kind):
    check_settings(TrainConfig(adapter=adapter(kind)))


@pytest.mark.parametrize("method", ["loha", "lokr", "oft"])
def test_a_missing_library_is_told_with_its_extra(method, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lycoris" else find(name)
    )
    with pytest.raises(LoraError, match="needs a library") as error:
        check_settings(TrainConfig(adapter=AdapterConfig(method)))
    assert error.value.fix == "pip install 'comfyui-lora-workbench[lycoris]'"
    check_settings(TrainConfig())


def test_nothing_is_written_on_standard_output(capsys):
    """A command's answer stands there alone; LyCORIS tells there how it splits sides."""
    with inject(tiny_trainable(), adapter("oft")) as factors:
        assert factors
    with inject(tiny_trainable(), AdapterConfig("lokr", 8)):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["loha", "lokr of a factor"])
def test_dropout_is_of_what_is_added(kind):
    """Zeros by sample and step, the others scaled up; nothing while measuring."""
    model, draws = tiny_trainable(), Draws(0)
    config = adapter(kind, targets=("attn1 & q",), dropout=0.4, alpha=None)
    with inject(model, config, draws=draws) as factors, torch.no_grad():
        fill(factors)
        (first, *_) = factors
        module = model.parts["unet"].get_submodule(first.trained.module)
        x = torch.randn(2, 50, module.in_features, generator=torch.Generator().manual_seed(1))
        base, whole = first._bare(x), module(x)
        with draws.of([(0, 0), (0, 1)]):
            dropped, again = module(x) - base, module(x) - base
        assert torch.equal(module(x), whole)
    assert torch.equal(dropped, again)
    kept = dropped.abs() > 1e-6
    assert float(kept.float().mean()) == pytest.approx(0.6, abs=0.05)
    torch.testing.assert_close(dropped[kept], ((whole - base) / 0.6)[kept], rtol=1e-3, atol=1e-5)
    assert not math.isclose(float(kept[0].float().mean()), float(kept[1].float().mean()))
