"""What a step costs on the real shapes, without their numbers; peers are measured alike."""

import gc

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_workbench.hosts.embedded.trainable import trainable_weights
from lora_workbench.lora_core.models import table_from_shapes
from lora_workbench.training.checkpointing import checkpointed
from lora_workbench.training.config import AdapterConfig
from lora_workbench.training.cost import Kept, size_of
from lora_workbench.training.dropout import Draws
from lora_workbench.training.injection import injected
from lora_workbench.training.targets import choose_targets
from lora_workbench.training.trainable import PictureSize

from .runs import tiny_trainable

RANK = 16
FAMILIES = pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
SDXL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNETS = {"sd15": {"cross_attention_dim": 768}, "sdxl": SDXL}
SIDES = {"sd15": 64, "sdxl": 128}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


def unet_of(family):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[family])
    return unet.bfloat16().eval().requires_grad_(False)


def parts_of(family):
    """The live modules of a base, by component, and the trainable weights in them."""
    parts, prefixes = {"unet": unet_of(family)}, {"unet": "unet.", "te1": "text_encoder."}
    with torch.device("meta"):
        parts["te1"] = CLIPTextModel(CLIPTextConfig(**CLIP_L))
        if family == "sdxl":
            parts["te2"] = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G))
            prefixes["te2"] = "text_encoder_2."
    shapes = {
        prefixes[name] + key: tuple(weight.shape)
        for name, part in parts.items()
        for key, weight in part.state_dict().items()
    }
    return parts, trainable_weights(table_from_shapes(shapes).targets)


@pytest.mark.parametrize(
    ("family", "counts"),
    [("sd15", {"unet": 192, "te1": 72}), ("sdxl", {"unet": 722, "te1": 72, "te2": 192})],
)
def test_the_modules_and_numbers_of_the_real_bases(family, counts):
    parts, weights = parts_of(family)
    config = AdapterConfig(rank=RANK, text_encoder=("attn", "ff"))
    targets = choose_targets(parts, weights, config)
    found = {name: sum(t.component == name for t in targets) for name in parts}
    assert found == counts
    with injected(parts, targets, config, 0, Draws(0)) as factors:
        size = size_of(factors, parts, "fp16")
        shapes = [each.layer.base_layer.weight.shape for each in factors]
    wanted = sum(RANK * (out + torch.Size(inside).numel()) for out, *inside in shapes)
    assert size.parameters == wanted
    assert size.file_bytes == 2 * wanted + 4 * len(targets)


def test_a_projection_that_the_model_does_not_read_is_not_trained():
    """Files of SD 2 hold that of OpenCLIP-H; SDXL reads its second encoder's."""
    shapes = {"text_encoder.text_projection.weight": (1024, 1024)}
    shapes |= {f"unet.{key}": tuple(w.shape) for key, w in unet_of("sd15").state_dict().items()}
    assert "te1" not in trainable_weights(table_from_shapes(shapes).targets)
    _, weights = parts_of("sdxl")
    assert "text_projection" in weights["te2"]


def step(unet, family):
    """FLOPs and kept bytes of one forward and backward in bf16."""
    side, dtype = SIDES[family], torch.bfloat16
    extra = None
    if family == "sdxl":
        pooled, ids = (torch.empty(1, n, device="meta", dtype=dtype) for n in (1280, 6))
        extra = {"text_embeds": pooled, "time_ids": ids}
    noisy = torch.empty(1, 4, side, side, device="meta", dtype=dtype)
    states = torch.empty(1, 77, UNETS[family]["cross_attention_dim"], device="meta", dtype=dtype)
    times = torch.empty(1, device="meta", dtype=torch.int64)
    kept = Kept(unet.parameters())
    flops = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack)
    with flops, torch.autocast("cpu", torch.bfloat16):
        with hooks:
            answer = unet(noisy, times, states, added_cond_kwargs=extra, return_dict=False)[0]
        answer.float().square().mean().backward()
    return flops.get_total_flops(), kept.peak


@pytest.fixture(autouse=True)
def _flash_attention(monkeypatch):
    """The meta device would take the attention that keeps its whole matrix."""

    usual = torch.nn.functional.scaled_dot_product_attention

    def flash(query, key, value, **options):
        if not query.is_meta:
            return usual(query, key, value, **options)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", flash)
    yield
    gc.collect()


def ours(family, depth=0):
    parts, weights = parts_of(family)
    config = AdapterConfig(rank=RANK)
    targets, draws = choose_targets(parts, weights, config), Draws(0)
    with (
        checkpointed(parts["unet"], depth, draws),
        injected(parts, targets, config, 0, draws, "bf16") as factors,
    ):
        assert all(p.dtype == torch.float32 for each in factors for p in each.parameters.values())
        return step(parts["unet"], family)


def peer(family, checkpointing=False):
    """PEFT's LoRA in the base's own bf16 on the same modules, and diffusers' checkpointing."""
    unet = unet_of(family)
    names = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and ".attentions." in name
    ]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names), unet)
    if checkpointing:
        unet.train()
        unet.enable_gradient_checkpointing()
    return step(unet, family)


@FAMILIES
def test_a_step_costs_no_more_than_peft_s(family):
    flops, kept = ours(family)
    peer_flops, peer_kept = peer(family)
    assert flops <= peer_flops
    assert kept <= peer_kept * 1.01  # float32 factors are cast once a step


@FAMILIES
def test_checkpointing_costs_no_more_than_diffusers(family):
    flops, kept = ours(family, depth=3)
    peer_flops, peer_kept = peer(family, checkpointing=True)
    assert flops <= 1.002 * peer_flops  # the first block in the middle is computed twice too
    assert kept <= peer_kept


@pytest.mark.slow
def test_the_outer_blocks_keep_less():
    kept = [ours("sd15", depth)[1] for depth in (1, 2, 3)]
    assert kept == sorted(kept)


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32])
def test_inputs_that_are_not_cast_twice_give_the_same_bits(base):
    found = [_gradients(base, precision) for precision in ("fp32", "bf16")]
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))


def _gradients(base, precision):
    """Under autocast, with PEFT's own casts for ``"fp32"`` and without them for ``"bf16"``."""
    model, config, draws = tiny_trainable(base), AdapterConfig(rank=4), Draws(0)
    targets = choose_targets(model.parts, model.weights, config)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    size = PictureSize((64, 64), (0, 0), (64, 64))
    conditions = model.conditions(model.encode_captions(["a"]), [size])
    with injected(model.parts, targets, config, 0, draws, precision) as factors:
        for each in factors:
            torch.nn.init.normal_(each.up, generator=torch.Generator().manual_seed(2))
        with torch.autocast("cpu", torch.bfloat16):
            answer = model.predict(noisy, torch.tensor([10]), conditions)
        answer.square().mean().backward()
        return [p.grad.clone() for each in factors for p in each.parameters.values()]
