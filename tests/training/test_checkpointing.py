"""Blocks computed twice: the same gradients, fewer kept numbers."""

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.checkpointing import blocks_at, checkpointed
from lora_workbench.training.config import AdapterConfig
from lora_workbench.training.dropout import Draws
from lora_workbench.training.injection import injected
from lora_workbench.training.targets import choose_targets
from lora_workbench.training.trainable import PictureSize

from .lycoris_cases import fill
from .runs import tiny_trainable

DROPOUT = AdapterConfig(rank=4, dropout=0.3)


def gradients(depth, adapter=DROPOUT):
    """Of one loss; and the bytes kept for the backward pass."""
    model, draws = tiny_trainable(), Draws(0)
    targets = choose_targets(model.parts, model.weights, adapter)
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sizes = [PictureSize((64, 64), (0, 0), (64, 64))] * 2
    conditions = model.conditions(model.encode_captions(["a", "b"]), sizes)
    unet = model.parts["unet"]
    with injected(model.parts, targets, adapter, 0, draws) as factors:
        fill(factors)
        with checkpointed(unet, depth, draws):
            with draws.of([(0, 0), (0, 1)]), torch.autograd.graph.saved_tensors_hooks(count, id_):
                loss = (model.predict(noisy, torch.tensor([10, 700]), conditions) ** 2).mean()
            loss.backward()
        found = [p.grad.clone() for each in factors for p in each.parameters.values()]
    assert "forward" not in {key for module in unet.modules() for key in vars(module)}
    return found, kept


def id_(tensor):
    return tensor


@pytest.mark.parametrize("depth", [1, 2])
def test_gradients_are_the_same_and_less_is_kept(depth):
    wanted, all_kept = gradients(0)
    found, kept = gradients(depth)
    assert all(torch.equal(left, right) for left, right in zip(found, wanted, strict=True))
    assert kept < 0.7 * all_kept


@pytest.mark.parametrize(
    "adapter",
    [AdapterConfig("loha", 2, dropout=0.3), AdapterConfig("lokr", 1, dropout=0.3),
     AdapterConfig("oft", 2, rescale=True)],
    ids=lambda adapter: adapter.method,
)  # fmt: skip
def test_gradients_of_lycoris_kinds_are_the_same(adapter):
    found, wanted = gradients(1, adapter)[0], gradients(0, adapter)[0]
    assert all(torch.equal(left, right) for left, right in zip(found, wanted, strict=True))


def test_a_depth_that_the_model_has_not_is_refused():
    with pytest.raises(LoraError, match="no blocks 9 lists deep"):
        blocks_at(tiny_trainable().parts["unet"], 9)
