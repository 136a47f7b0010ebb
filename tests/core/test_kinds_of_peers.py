"""LoHa, LoKr and OFT as LyCORIS and PEFT train them: their own forward, and our merged weight."""

import json
import logging

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  torch's own habit

from lora_workbench.lora_core.adapters import OftAdapter
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.patching.copies import patched_tensors
from lora_workbench.lora_core.stack import StackItem, make_plan

from .toy_model import normal, one_weight_table


def merged(tensors, base, strength=1.0, header=None):
    plan = make_plan(
        [StackItem(lora_from_tensors("x", tensors, header), strength)],
        one_weight_table("m", tuple(base.shape)),
    )
    return dict(patched_tensors(plan, {"m": base}))["m"]


# ----- LyCORIS -----

LYCORIS = {
    "loha": ("LohaModule", {"alpha": 3}),
    "loha tucker": ("LohaModule", {"alpha": 3, "use_tucker": True}),
    "loha rslora": ("LohaModule", {"alpha": 3, "rs_lora": True}),
    "loha dora": ("LohaModule", {"alpha": 3, "weight_decompose": True}),
    "loha dora by inputs": ("LohaModule", {"weight_decompose": True, "wd_on_out": False}),
    "lokr": ("LokrModule", {"alpha": 3}),
    "lokr of a factor": ("LokrModule", {"alpha": 3, "factor": 2}),
    "lokr tucker": ("LokrModule", {"alpha": 3, "factor": 2, "use_tucker": True}),
    "lokr both of factors": (
        "LokrModule",
        {"alpha": 3, "decompose_both": True, "lora_dim": 2},
    ),
    "lokr full": ("LokrModule", {"alpha": 3, "full_matrix": True}),
    "lokr unbalanced": ("LokrModule", {"factor": 2, "unbalanced_factorization": True}),
    "lokr dora": ("LokrModule", {"alpha": 3, "factor": 2, "weight_decompose": True}),
    "oft": ("DiagOFTModule", {}),
    "oft constrained": ("DiagOFTModule", {"constraint": 0.01}),
    "oft rescaled": ("DiagOFTModule", {"rescaled": True}),
    "boft": ("ButterflyOFTModule", {"lora_dim": 6}),
    "boft constrained": ("ButterflyOFTModule", {"lora_dim": 6, "constraint": 0.01}),
    "boft rescaled": ("ButterflyOFTModule", {"lora_dim": 6, "rescaled": True}),
}
LAYERS = {
    "linear": (lambda: nn.Linear(40, 48), (3, 40)),
    "3x3": (lambda: nn.Conv2d(12, 24, 3), (2, 12, 5, 5)),
    "1x1": (lambda: nn.Conv2d(40, 48, 1), (2, 40, 2, 2)),
}


def trained_by_lycoris(kind, layer, options, generator):
    """One of its modules with numbers in every parameter, and the tensors that it saves."""
    lycoris = pytest.importorskip("lycoris.modules", reason="the extra [lycoris] is not installed")
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    options = {"lora_dim": 4} | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = getattr(lycoris, kind)("m", layer, 1.0, **options)
    module.eval()
    for name, parameter in module.named_parameters():
        if name.startswith("org_module"):
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        is_ratio = "dora_scale" in name or "rescale" in name
        parameter.data.copy_(parameter * (1 + 0.1 * noise) if is_ratio else 0.3 * noise)
    return module, {f"m.{key}": value.clone() for key, value in module.state_dict().items()}


def as_layer(layer, weight, x):
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias)


# LyCORIS leaves the change below magnitudes, and a rescale, in at strength 0; we do not.
STRENGTHS = [
    (case, strength)
    for case in LYCORIS
    for strength in ((1.0,) if "dora" in case or "rescaled" in case else (1.0, 0.6))
]


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(("case", "strength"), STRENGTHS)
def test_a_merged_weight_does_what_lycoris_forward_does(case, build, shape, strength, generator):
    kind, options = LYCORIS[case]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = build()
    module, tensors = trained_by_lycoris(kind, layer, options, generator)
    module.multiplier = strength
    x, base = normal(shape, generator), layer.weight.detach()
    with torch.no_grad():
        expected, plain = module(x), layer(x)
        got = as_layer(layer, merged(tensors, base, strength), x)
    assert (expected - plain).norm() > 1e-2 * plain.norm()
    assert (got - expected).norm() <= 2e-6 * expected.norm() + 1e-5 * (expected - plain).norm()


# ----- PEFT -----

PEFT_LAYERS = {
    "linear": lambda: nn.Linear(40, 48),
    "convolution": lambda: nn.Conv2d(12, 24, 3),
    "1x1 convolution": lambda: nn.Conv2d(40, 48, 1),
}
PEFT = {
    "loha": (peft.LoHaConfig, {}),
    "loha effective": (peft.LoHaConfig, {"use_effective_conv2d": True}),
    "lokr": (peft.LoKrConfig, {}),
    "lokr effective": (peft.LoKrConfig, {"use_effective_conv2d": True, "decompose_factor": 2}),
    "lokr both of factors": (peft.LoKrConfig, {"decompose_both": True, "r": 2}),
    "lokr full": (peft.LoKrConfig, {"r": 64}),
}


@pytest.mark.parametrize("build", PEFT_LAYERS.values(), ids=PEFT_LAYERS)
@pytest.mark.parametrize("case", PEFT)
def test_merged_weights_are_those_of_peft(case, build, generator):
    """Its config in the header gives alpha, and the rank of two full matrices, which it scales."""
    kind, options = PEFT[case]
    fields = {"r": 4, "alpha": 3} | options
    model = peft.inject_adapter_in_model(
        kind(target_modules=["m"], init_weights=False, **fields), nn.ModuleDict({"m": build()})
    )
    for name, parameter in model.named_parameters():
        if "base_layer" not in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    base = model["m"].base_layer.weight.detach().clone()
    tensors = {k: v.detach().clone() for k, v in peft.get_peft_model_state_dict(model).items()}
    assert all(key.startswith("m.") and "default" not in key for key in tensors)
    model["m"].merge()
    expected = model["m"].base_layer.weight.detach()
    header = {"peft_type": "LOHA" if "loha" in case else "LOKR", **fields}
    ours = merged(tensors, base, header={"lora_adapter_metadata": json.dumps(header)})
    assert (expected - base).norm() > 1e-3 * base.norm()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    named = {f"{k}.default": v for k, v in tensors.items()}
    named = merged(named, base, header={"lora_adapter_metadata": json.dumps(header)})
    assert torch.equal(named, ours)


def test_a_turn_is_that_of_pefts_oft_seen_from_the_other_side(generator):
    """PEFT turns inputs; with exact inverses its matrix on W^T is ours on W."""
    config = peft.OFTConfig(
        target_modules=["m"], oft_block_size=8, use_cayley_neumann=False, init_weights=False
    )
    model = peft.inject_adapter_in_model(config, nn.ModuleDict({"m": nn.Linear(48, 40)}))
    vectors = model["m"].oft_R["default"].weight
    vectors.data.copy_(torch.randn(vectors.shape, generator=generator) * 0.2)
    base = model["m"].base_layer.weight.detach().clone()
    model["m"].merge()
    expected = model["m"].base_layer.weight.detach()
    rows, columns = torch.triu_indices(8, 8, 1)
    blocks = torch.zeros(6, 8, 8)
    blocks[:, rows, columns] = vectors.detach()
    seen = base.t()
    got = (seen + OftAdapter(blocks).delta(seen)).t()
    assert (expected - base).norm() > 0.1 * base.norm()
    assert (got - expected).norm() < 1e-6 * base.norm()
