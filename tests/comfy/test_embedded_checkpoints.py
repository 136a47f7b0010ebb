"""What the embedded host loads from a file computes what ComfyUI computes from it.

diffusers cannot be imported beside ComfyUI here: a second process loads the same file and leaves
its numbers in another one.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

HEADLESS = Path(__file__).parents[1] / "headless"
TOLERANCE = 1e-5  # of the largest value
STEP = 300  # of the 1,000

# Makes a tiny checkpoint when a family is named, and writes what the loaded parts compute.
EMBEDDED = """
import json, sys
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
folder, headless, jobs = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, headless)
from tiny_checkpoints import write_tiny
from lora_workbench.hosts.embedded.checkpoints import load_checkpoint

def outputs_of(loaded, given):
    yield "unet", loaded.diffusion.unet(
        given["latents"], given["step"], given["context"], added_cond_kwargs=given
    ).sample
    for name, encoder in loaded.text.encoders.items():
        states = encoder(given["ids"])
        yield name, states.last_hidden_state
        if "text_embeds" in states:
            yield name + " projected", states.text_embeds
    part = loaded.vae
    if type(part.vae).__name__ == "AutoencoderTiny":
        yield "decoded", part.vae.decode(given["raw"] * part.latent_scale).sample
        yield "encoded", part.vae.encode(given["pictures"]).latents / part.latent_scale
    else:
        yield "decoded", part.vae.decode(given["raw"]).sample
        yield "encoded", part.vae.encode(given["pictures"]).latent_dist.mode()

for name, path in jobs.items():
    path = Path(path or folder / f"{name}.safetensors")
    if not path.is_file():
        write_tiny(path, name)
    with torch.inference_mode():
        found = dict(outputs_of(load_checkpoint(path), load_file(folder / f"{name}.inputs")))
    save_file({key: value.contiguous() for key, value in found.items()}, folder / f"{name}.outputs")
"""

TIME_IDS = {
    "sdxl": [[768.0, 512, 16, 32, 640, 704]],
    "sdxl-refiner": [[768.0, 512, 16, 32, 6.5]],
}
COMFY_CLASS = {"sd15": "SD15", "sd2": "SD20", "sdxl": "SDXL", "sdxl-refiner": "SDXLRefiner"}
CONTEXT = {"sdxl": 128}
COMFY_ENCODERS = {"sd15": "l", "sd2": "h", "sdxl": "lg", "sdxl-refiner": "g"}


def given(context_width, vocabulary, family=None):
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, vocabulary - 2, (1, 77), generator=generator)
    ids[0, 0], ids[0, 40:] = vocabulary - 2, vocabulary - 1
    inputs = {
        "latents": torch.randn(1, 4, 8, 8, generator=generator),
        "context": torch.randn(1, 77, context_width, generator=generator),
        "step": torch.tensor([STEP]),
        "ids": ids,
        "raw": torch.randn(1, 4, 8, 8, generator=generator),
        "pictures": torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1,
    }
    if family in TIME_IDS:
        inputs["time_ids"] = torch.tensor(TIME_IDS[family])
        inputs["text_embeds"] = torch.randn(1, 1280, generator=generator)
    return inputs


@pytest.fixture(scope="module")
def folder(comfy, slim_checkpoint, tmp_path_factory):
    """Inputs and the embedded host's outputs for the slim checkpoint and a tiny one a family."""
    folder = tmp_path_factory.mktemp("embedded")
    save_file(given(768, 49408), folder / "slim.inputs")
    for family in COMFY_CLASS:
        save_file(given(CONTEXT.get(family, 64), 50, family), folder / f"{family}.inputs")
    jobs = {"slim": str(comfy.checkpoints_dir / slim_checkpoint), **dict.fromkeys(COMFY_CLASS)}
    command = [sys.executable, "-c", EMBEDDED, str(folder), str(HEADLESS), json.dumps(jobs)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return folder


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        difference = (ours[name] - value).abs().max() / value.abs().max()
        assert difference <= TOLERANCE, f"{name}: {difference:.1e}"


def test_the_slim_checkpoint_computes_what_it_computes_in_comfyui(slim_checkpoint, folder):
    import nodes

    inputs, ours = load_file(folder / "slim.inputs"), load_file(folder / "slim.outputs")
    model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(slim_checkpoint)
    with torch.inference_mode():
        from comfy import model_management

        model_management.load_models_gpu([model, clip.patcher])
        unet, encoder = model.model.diffusion_model, clip.cond_stage_model.clip_l.transformer
        theirs = {
            "unet": unet(inputs["latents"], inputs["step"].float(), context=inputs["context"]),
            "l": encoder(inputs["ids"])[0],
            "decoded": vae.first_stage_model.float().decode(inputs["raw"]),
            "encoded": vae.first_stage_model.encode(inputs["pictures"]),
        }
    assert_equal(ours, theirs)


def tiny_unet(tensors, prefix, family):
    """ComfyUI's UNet of the family, with the widths that its own detection finds in the file."""
    import comfy.ops
    from comfy import model_detection, supported_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = model_detection.detect_unet_config(tensors, prefix)
    config |= getattr(supported_models, COMFY_CLASS[family]).unet_extra_config
    config.pop("attn_precision", None)
    unet = UNetModel(**config, device="cpu", dtype=torch.float32, operations=comfy.ops.manual_cast)
    state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    unet.load_state_dict(state)
    return unet.eval()


def tiny_encoder(state, name):
    """ComfyUI's text encoder, with the widths in its state dict."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel

    prefix = f"clip_{name}.transformer."
    state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
    layers = {k.split(".")[3] for k in state if ".layers." in k}
    config = {
        "num_hidden_layers": len(layers),
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "hidden_act": "quick_gelu" if name == "l" else "gelu",
        "max_position_embeddings": 77,
        "eos_token_id": vocabulary - 1,
    }
    encoder = CLIPTextModel(config, torch.float32, "cpu", comfy.ops.manual_cast)
    embeddings = encoder.text_model.embeddings
    embeddings.token_embedding = comfy.ops.manual_cast.Embedding(vocabulary, width)
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"text_projection.weight"}
    return encoder.eval()


@pytest.mark.parametrize("family", COMFY_CLASS)
def test_a_checkpoint_of_free_width_computes_what_comfyuis_modules_compute(family, folder):
    from comfy import supported_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep

    inputs, ours = load_file(folder / f"{family}.inputs"), load_file(folder / f"{family}.outputs")
    tensors = load_file(folder / f"{family}.safetensors")

    theirs, label = {}, {}
    if family in TIME_IDS:
        numbers = Timestep(256)(inputs["time_ids"].flatten()).reshape(1, -1)
        label["y"] = torch.cat([inputs["text_embeds"], numbers], dim=1)
    with torch.inference_mode():
        unet = tiny_unet(tensors, "model.diffusion_model.", family)
        step = inputs["step"].float()
        theirs["unet"] = unet(inputs["latents"], step, context=inputs["context"], **label)
        converter = getattr(supported_models, COMFY_CLASS[family])
        prefixes = ("cond_stage_model.", "conditioner.")
        stored = {k: v for k, v in tensors.items() if k.startswith(prefixes)}
        state = converter.process_clip_state_dict(None, stored)
        for name in COMFY_ENCODERS[family]:
            last, _, projected, _ = tiny_encoder(state, name)(inputs["ids"])
            theirs[name] = last
            if name != "l":
                theirs[f"{name} projected"] = projected
    assert_equal({k: v for k, v in ours.items() if k not in ("decoded", "encoded")}, theirs)


def test_a_vae_of_free_width_computes_what_comfyuis_computes(folder):
    from comfy.ldm.models.autoencoder import AutoencoderKL

    inputs, ours = load_file(folder / "sd15.inputs"), load_file(folder / "sd15.outputs")
    sizes = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "resolution": 32}
    config = {"double_z": True, "z_channels": 4, "in_channels": 3, "out_ch": 3, **sizes}
    vae = AutoencoderKL(ddconfig={**config, "attn_resolutions": [], "dropout": 0.0}, embed_dim=4)
    prefix = "first_stage_model."
    tensors = load_file(folder / "sd15.safetensors")
    vae.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    with torch.inference_mode():
        vae.eval()
        mean, _ = vae.quant_conv(vae.encoder(inputs["pictures"])).chunk(2, dim=1)
        theirs = {"decoded": vae.decode(inputs["raw"]), "encoded": mean}
    assert_equal({name: ours[name] for name in theirs}, theirs)
