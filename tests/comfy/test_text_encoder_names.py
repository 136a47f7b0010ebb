"""Our names of stored text encoders against ComfyUI's own conversion of checkpoints."""

import pytest
import torch

from lora_workbench.lora_core.models import table_from_shapes
from lora_workbench.lora_core.models.architectures import checkpoint_shapes

COMFY_CLASS = {"sd15": "SD15", "sd21": "SD20", "sdxl": "SDXL", "sdxl-refiner": "SDXLRefiner"}
ENCODERS = {
    "sd15": {"clip_l": "te1"},
    "sd21": {"clip_h": "te1"},
    "sdxl": {"clip_l": "te1", "clip_g": "te2"},
    "sdxl-refiner": {"clip_g": "te1"},
}


def shrunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Keep which sizes differ and divide them by 256, so that whole encoders stay small."""
    return tuple(size // 256 if size % 256 == 0 else size for size in shape)


def numbered(shapes):
    """Return tensors whose elements are all different, over the whole model."""
    tensors, start = {}, 0
    for key, shape in shapes.items():
        count = torch.Size(shape).numel()
        tensors[key] = torch.arange(start, start + count).reshape(shape)
        start += count
    return tensors


@pytest.mark.parametrize("base", COMFY_CLASS)
def test_each_target_views_the_elements_that_comfyui_converts_to_its_name(base, comfy):
    from comfy import supported_models

    shapes = {
        key: shrunk(shape)
        for key, shape in checkpoint_shapes(base).items()
        if not key.startswith("model.")
    }
    tensors = numbered(shapes)
    converter = getattr(supported_models, COMFY_CLASS[base])
    converted = converter.process_clip_state_dict(None, dict(tensors))

    ours = {}
    names = {component: comfy_name for comfy_name, component in ENCODERS[base].items()}
    for target in table_from_shapes(shapes).targets:
        view = tensors[target.target_key]
        if target.rows:
            view = view[slice(*target.rows)]
        view = view.T if target.transposed else view
        assert view.shape == target.shape
        ours[f"{names[target.component]}.transformer.{target.canonical}"] = view

    assert ours.keys() == converted.keys()
    assert all(torch.equal(ours[key], converted[key]) for key in ours)
