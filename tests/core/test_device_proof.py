"""Merge, change and un-merge where the weights are: no weight crosses, each factor goes up once."""

import pytest
import torch

from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.patching import checksum, fused
from lora_workbench.lora_core.patching.base_file import base_files
from lora_workbench.lora_core.patching.ledger import MergeLedger

from .accelerator import Accelerator, OnAccelerator
from .kind_cases import toy_kinds
from .toy_model import (
    CHUNK_ELEMENTS,
    all_bits,
    same_bits,
    toy_dora,
    toy_loras,
    toy_plan,
    toy_weights,
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", CHUNK_ELEMENTS)
    # Wrapper tensors cannot be detached in inference mode ("Cannot set version_counter").
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    yield
    checksum._lane_weights.cache_clear()  # holds tensors of a device that is gone


def test_the_proof_sees_a_copy_up_a_copy_down_and_a_mixture():
    accelerator = Accelerator()
    weight = accelerator.put(torch.ones(3))
    with accelerator:
        moved = torch.ones(3).to(weight.device)
        assert isinstance(moved, OnAccelerator)
        assert isinstance(torch.zeros(2, device=weight.device), OnAccelerator)
        assert (accelerator.uploads, accelerator.downloads) == ([3], [])
        assert not isinstance(weight.cpu(), OnAccelerator)
        assert accelerator.downloads == [3]
        assert int((weight + moved).sum()) == 6
        assert accelerator.scalars == 1
        with pytest.raises(AssertionError, match="mixes devices"):
            weight + torch.ones(3)


@pytest.mark.parametrize("build", [toy_dora, toy_kinds], ids=["dora", "loha, lokr, oft"])
@pytest.mark.parametrize("rung", ["full", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_no_weight_crosses_and_each_factor_goes_up_once(rung, dtype, build, generator):
    weights, flat = toy_weights(generator, dtype)
    a, b = toy_loras(generator)[0], build("b", generator)
    base, accelerator = flat.clone(), Accelerator()
    ledger = MergeLedger({key: accelerator.put(weight) for key, weight in weights.items()}, rung)
    with accelerator:
        ledger.apply(toy_plan((a, 1.0), (b, 0.5)))
        merged = all_bits(weights)
        ledger.apply(toy_plan((a, -0.3), (b, 0.5)))
        ledger.apply(toy_plan((a, 1.0), (b, 0.5)))
        assert same_bits(all_bits(weights), merged)
        ledger.unmerge()
    assert torch.equal(flat.view(torch.uint8), base.view(torch.uint8))
    factors = [
        info.numel
        for lora in (a, b)
        for key, info in lora.file.tensors.items()
        if not key.endswith(".alpha")
    ]
    assert sorted(accelerator.uploads) == sorted(factors)
    assert accelerator.downloads == []


def test_the_file_rung_uploads_the_base_and_brings_back_only_scalars(generator, tmp_path):
    weights, flat = toy_weights(generator, torch.float16)
    write_safetensors(tmp_path / "base.safetensors", weights)
    files = base_files(open_safetensors(tmp_path / "base.safetensors"))
    lora = toy_loras(generator)[0]
    base, accelerator = flat.clone(), Accelerator()
    on_device = {key: accelerator.put(weight) for key, weight in weights.items()}
    ledger = MergeLedger(on_device, "file", files)
    with accelerator:
        ledger.apply(toy_plan((lora, 1.0)))
        before = sum(accelerator.uploads)
        ledger.unmerge()
    assert torch.equal(flat.view(torch.uint8), base.view(torch.uint8))
    assert sum(accelerator.uploads) - before == sum(w.numel() for w in weights.values())
    assert accelerator.downloads == []
