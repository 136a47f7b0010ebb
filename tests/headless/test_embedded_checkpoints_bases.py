"""Full-size files, as headers without data: the modules built for them are the published ones."""

import json
import struct

import pytest
import torch

from lora_workbench.hosts.embedded.checkpoints import text_config, unet_config, vae_config
from lora_workbench.hosts.embedded.checkpoints.build import meta_text_encoder, meta_unet, meta_vae
from lora_workbench.hosts.embedded.checkpoints.contents import contents_of
from lora_workbench.hosts.embedded.checkpoints.ldm_names import (
    text_places_of,
    unet_places,
    vae_places,
)
from lora_workbench.hosts.embedded.checkpoints.text_config import canonical
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.models.architectures import BASES, checkpoint_shapes

LEVELS4 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
XL = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}
# unet/config.json of the published models, where it differs from the class's defaults.
PUBLISHED = {
    "sd15": LEVELS4 | {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": LEVELS4
    | {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": XL
    | {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl-refiner": XL
    | {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": 4,
        "cross_attention_dim": 1280,
        "attention_head_dim": (6, 12, 24, 24),
        "projection_class_embeddings_input_dim": 2560,
    },
}
FAMILY = {"sd15": "sd15", "sd21": "sd2", "sdxl": "sdxl", "sdxl-refiner": "sdxl-refiner"}
CLIP = {
    "l": (768, 3072, 12, 12, "quick_gelu"),
    "h": (1024, 4096, 24, 16, "gelu"),
    "g": (1280, 5120, 32, 20, "gelu"),
}
ENCODERS = {"sd15": "l", "sd21": "h", "sdxl": "lg", "sdxl-refiner": "g"}
LISTED_UNETS = {
    "sd15": "diffusers_sd15_unet",
    "sd15-inpaint": "diffusers_sd15_inpaint_unet",
    "sd21": "diffusers_sd21_unet",
    "sdxl": "diffusers_sdxl_unet",
    "sdxl-refiner": "diffusers_sdxl_refiner_unet",
}


def sparse_file(path, shapes):
    """A file with this header, whose data takes no room on disk."""
    entries, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        entries[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return open_safetensors(path)


def shapes_of(sources):
    return {name: stored.shape for name, stored in sources.items()}


def parameter_shapes(module):
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def built_unet(base, tmp_path):
    contents = contents_of(sparse_file(tmp_path / "a.safetensors", checkpoint_shapes(base)))
    shapes = shapes_of(contents.unet)
    family = unet_config.unet_family("a", shapes, {})
    return contents, family, meta_unet(unet_config.unet_config(shapes, family, {}))


def heads(unet):
    return {
        name: module.heads for name, module in unet.named_modules() if hasattr(module, "to_out")
    }


@pytest.mark.parametrize("base", BASES)
def test_the_unet_is_the_one_of_the_published_configuration(base, tmp_path):
    from diffusers import UNet2DConditionModel

    plain = base.removesuffix("-inpaint")
    in_channels = 9 if base.endswith("-inpaint") else 4
    contents, family, ours = built_unet(base, tmp_path)
    with torch.device("meta"):
        theirs = UNet2DConditionModel(in_channels=in_channels, **PUBLISHED[plain])

    assert family == FAMILY[plain]
    assert shapes_of(contents.unet) == parameter_shapes(ours) == parameter_shapes(theirs)
    assert heads(ours) == heads(theirs)
    assert [type(block) for block in ours.down_blocks] == [type(b) for b in theirs.down_blocks]
    assert not contents.unused and not contents.foreign


@pytest.mark.parametrize("base", LISTED_UNETS)
def test_the_unet_has_the_parameters_of_the_lists_of_real_models(base, shared_data, tmp_path):
    listed = json.loads((shared_data / "models" / f"{LISTED_UNETS[base]}.json").read_text())
    theirs = {key: tuple(tensor["shape"]) for key, tensor in listed["tensors"].items()}
    assert parameter_shapes(built_unet(base, tmp_path)[2]) == theirs


@pytest.mark.parametrize("base", ENCODERS)
def test_text_encoders_are_those_of_the_published_configurations(base, tmp_path):
    contents, *_ = built_unet(base, tmp_path)
    assert len(contents.encoders) == len(ENCODERS[base])
    for name, sources in zip(ENCODERS[base], contents.encoders, strict=True):
        config = text_config.text_config(name, shapes_of(sources), "x", {})
        module = meta_text_encoder(config, "text_projection.weight" in sources)
        assert (
            *(config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]),
            *(config["num_attention_heads"], config["hidden_act"]),
        ) == CLIP[name]
        assert (config["bos_token_id"], config["eos_token_id"]) == (49406, 49407)
        named = {canonical(key): shape for key, shape in parameter_shapes(module).items()}
        assert shapes_of(sources) == named
        assert ("text_projection.weight" in named) == (name != "l")


@pytest.mark.parametrize("base", BASES)
def test_places_are_the_names_and_shapes_of_the_published_file(base, tmp_path):
    """There and back: file -> modules -> places."""
    contents, family, unet = built_unet(base, tmp_path)
    places = list(unet_places(unet).values())
    for name, sources in zip(
        ENCODERS[base.removesuffix("-inpaint")], contents.encoders, strict=True
    ):
        config = text_config.text_config(name, shapes_of(sources), "x", {})
        module = meta_text_encoder(config, "text_projection.weight" in sources)
        own = text_places_of(module, family, name)
        places += own.values()
        for key, place in own.items():
            stored = sources[canonical(key)]
            assert (place.key, place.transposed) == (stored.key, stored.transposed)
            assert place.first_row == (stored.rows[0] if stored.rows else 0)
    assert {place.key: place.shape for place in places} == checkpoint_shapes(base)


@pytest.mark.parametrize("listed", ["sdmecha_sd1-ldm", "sdmecha_sdxl-sgm"])
def test_every_tensor_of_a_real_files_list_has_a_place(listed, shared_data, tmp_path):
    tensors = json.loads((shared_data / "models" / f"{listed}.json").read_text())["tensors"]
    shapes = {key: tuple(tensor["shape"]) for key, tensor in tensors.items()}
    contents = contents_of(sparse_file(tmp_path / "a.safetensors", shapes))
    vae = meta_vae(vae_config.kl_config(shapes_of(contents.vae), {}), is_tiny=False)

    stored = [contents.unet, *contents.encoders, contents.vae]
    keys = [place.key for sources in stored for place in sources.values()]
    extra = [*contents.sampling, *contents.unused, *contents.foreign]
    assert set(keys) | set(extra) == shapes.keys() and not set(keys) & set(extra)
    assert not contents.foreign
    theirs = {key: shape for key, shape in shapes.items() if key.startswith("first_stage_model.")}
    assert {place.key: place.shape for place in vae_places(vae).values()} == theirs
