"""The generated names and shapes against the lists of real models."""

import json

import pytest

from lora_workbench.lora_core.errors import UnknownChoiceError, UnsupportedFormatError
from lora_workbench.lora_core.models import BASES, table_for_base
from lora_workbench.lora_core.models.architectures import (
    checkpoint_shapes,
    comfy_shapes,
    diffusers_unet_shapes,
)

LISTED = {"sd15": "sd15", "sd21": "sd21", "sdxl": "sdxl", "sdxl-refiner": "sdxl_refiner"}
CHECKPOINT_ROOTS = ("model.diffusion_model.", "cond_stage_model.", "conditioner.")
NEVER_TRAINED = ("logit_scale", "position_ids")


@pytest.fixture
def shapes_of(shared_data):
    def read(name: str) -> dict[str, tuple[int, ...]]:
        listed = json.loads((shared_data / "models" / f"{name}.json").read_text())
        return {key: tuple(tensor["shape"]) for key, tensor in listed["tensors"].items()}

    return read


def trainable(shapes):
    return {name: shape for name, shape in shapes.items() if not name.endswith(NEVER_TRAINED)}


@pytest.mark.parametrize(("base", "listed"), LISTED.items())
def test_comfyui_names_and_shapes_are_those_of_comfyui(base, listed, shapes_of):
    theirs = shapes_of(f"comfy_{listed}_diffusion_model")
    theirs |= trainable(shapes_of(f"comfy_{listed}_text_encoders"))

    assert comfy_shapes(base) == theirs


@pytest.mark.parametrize(("base", "listed"), [*LISTED.items(), ("sd15-inpaint", "sd15_inpaint")])
def test_diffusers_names_and_shapes_are_those_of_diffusers(base, listed, shapes_of):
    assert diffusers_unet_shapes(base) == shapes_of(f"diffusers_{listed}_unet")


@pytest.mark.parametrize(("base", "listed"), [("sd15", "sd1-ldm"), ("sdxl", "sdxl-sgm")])
def test_checkpoint_names_and_shapes_are_those_of_the_published_files(base, listed, shapes_of):
    published = trainable(shapes_of(f"sdmecha_{listed}"))
    theirs = {key: shape for key, shape in published.items() if key.startswith(CHECKPOINT_ROOTS)}

    assert checkpoint_shapes(base) == theirs


@pytest.mark.parametrize(
    ("base", "component", "listed"),
    [
        ("sd15", "te1", "transformers_clip_l_text"),
        ("sdxl", "te1", "transformers_clip_l_text"),
        ("sdxl", "te2", "transformers_openclip_bigg_text_sdxl"),
        ("sdxl-refiner", "te1", "transformers_openclip_bigg_text_sdxl"),
    ],
)
def test_canonical_text_encoder_names_and_shapes_are_those_of_transformers(
    base, component, listed, shapes_of
):
    ours = [each for each in table_for_base(base).targets if each.component == component]

    assert {each.canonical: each.shape for each in ours} == shapes_of(listed)


def test_sd21_has_the_last_layer_and_the_projection_that_transformers_leaves_out(shapes_of):
    ours = {
        each.canonical: each.shape
        for each in table_for_base("sd21").targets
        if each.component == "te1"
    }
    theirs = shapes_of("transformers_openclip_h_text_sd2")

    assert ours.items() >= theirs.items()
    assert all(
        name.startswith("text_model.encoder.layers.23.") or name == "text_projection.weight"
        for name in ours.keys() - theirs.keys()
    )


@pytest.mark.parametrize("base", BASES)
def test_inpainting_bases_differ_from_their_base_in_the_first_convolution_only(base):
    if not base.endswith("-inpaint"):
        assert checkpoint_shapes(base)["model.diffusion_model.input_blocks.0.0.weight"][1] == 4
        return
    ours, plain = checkpoint_shapes(base), checkpoint_shapes(base.removesuffix("-inpaint"))

    changed = {name for name in ours if ours[name] != plain[name]}
    assert ours.keys() == plain.keys()
    assert changed == {"model.diffusion_model.input_blocks.0.0.weight"}
    assert ours[changed.pop()][1] == 9


@pytest.mark.parametrize("base", ["sd3", "flux"])
def test_a_base_of_a_later_version_says_so(base):
    with pytest.raises(UnsupportedFormatError, match="not supported yet"):
        checkpoint_shapes(base)


def test_an_unknown_base_names_the_nearest_known_one():
    with pytest.raises(UnknownChoiceError, match="use 'sdxl-refiner'"):
        checkpoint_shapes("sdxl_refiner")
