"""Our stacks and LoRAs between core's nodes and nodes that read as other packs do."""

import asyncio
import shutil

import numpy as np
import pytest
from PIL import Image

from .checkpoints import SLIM, attention_targets, lora_targets, write_lora
from .conftest import node, text_to_image


@pytest.fixture(scope="module", autouse=True)
def core_training_nodes(comfy):
    """ComfyUI's own nodes for LORA_MODEL and LOSS_MAP, which its base set leaves out."""
    import nodes

    file = comfy.root / "comfy_extras" / "nodes_train.py"
    asyncio.run(nodes.load_custom_node(str(file), module_parent="comfy_extras"))


@pytest.fixture(scope="module")
def executor(comfy):
    """One for all tests here: the checkpoint is loaded once."""
    return comfy.new_executor()


@pytest.fixture(scope="module")
def loras(comfy, slim_checkpoint):
    """A kohya file in a folder, and a PEFT file."""
    targets = lora_targets(SLIM)
    (comfy.loras_dir / "packs").mkdir(exist_ok=True)
    write_lora(comfy.loras_dir / "packs" / "pack_kohya.safetensors", targets, seed=1)
    peft = comfy.loras_dir / "packs" / "pack_peft.safetensors"
    write_lora(peft, attention_targets(targets), seed=2, naming="peft")
    return ["packs/pack_kohya.safetensors", "packs/pack_peft.safetensors"]


class ForeignApply:
    """Reads a stack as strict packs do: exactly three values, files through core's loader."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802  ComfyUI's name
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",), "stack": ("LORA_STACK",)}}

    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "apply"

    def apply(self, model, clip, stack):
        from nodes import LoraLoader

        for name, strength_model, strength_clip in stack:
            model, clip = LoraLoader().load_lora(model, clip, name, strength_model, strength_clip)
        return model, clip


class ForeignStacker:
    """Writes a stack as other packs do: an absolute path, and a name without folder or ending."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802  ComfyUI's name
        return {"required": {"names": ("STRING", {})}, "optional": {"stack": ("LORA_STACK",)}}

    RETURN_TYPES = ("LORA_STACK",)
    FUNCTION = "stack_them"

    def stack_them(self, names, stack=None):
        own = [(name, 0.8, 0.4) for name in names.splitlines()]
        return ([*((name, model, clip) for name, model, clip in stack or ()), *own],)


@pytest.fixture(autouse=True)
def foreign_nodes(comfy, monkeypatch):
    import nodes

    for foreign in (ForeignApply, ForeignStacker):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, foreign.__name__, foreign)


def applied(checkpoint, source, /, **extra):
    """Text to image with a stack, ``(node id, slot)``, on Apply."""
    inputs = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "rows": "[]"}
    extra["apply"] = node("LoraWorkbenchApply", **inputs, lora_stack=list(source))
    return text_to_image(checkpoint, model=("apply", 0), clip=("apply", 1), extra=extra)


def rows_of(names):
    return node("LoraWorkbenchStack", rows="".join(f"<lora:{name}:0.8:0.4>" for name in names))


def picture(result):
    (path,) = result.pictures
    return path.read_bytes()


def assert_alike(result, other):
    """Equal but for what float32 rounding of two orders of summing may move a pixel by."""
    pixels = [np.asarray(Image.open(run.pictures[0])).astype(int) for run in (result, other)]
    assert abs(pixels[0] - pixels[1]).max() <= 1


def test_a_strict_pack_applies_our_stack(executor, slim_checkpoint, loras):
    """One kohya LoRA: core's own loader on our entry gives the picture of Apply."""
    foreign = node(
        "ForeignApply", model=["checkpoint", 0], clip=["checkpoint", 1], stack=["stack", 0]
    )
    graph = text_to_image(
        slim_checkpoint,
        model=("foreign", 0),
        clip=("foreign", 1),
        extra={"stack": rows_of(loras[:1]), "foreign": foreign},
    )
    ours = applied(slim_checkpoint, ("stack", 0), stack=rows_of(loras[:1]))
    assert_alike(executor.run(graph), executor.run(ours))


def test_a_foreign_stack_applies_here_and_the_report_says_what_it_lacks(
    comfy, executor, slim_checkpoint, loras
):
    names = f"{comfy.loras_dir / 'packs' / 'pack_kohya.safetensors'}\npack_peft"
    foreign = applied(slim_checkpoint, ("foreign", 0), foreign=node("ForeignStacker", names=names))
    result = executor.run(foreign)
    ours = executor.run(applied(slim_checkpoint, ("stack", 0), stack=rows_of(loras)))
    assert picture(result) == picture(ours)
    (report,) = result.outputs["apply"]["text"]
    assert "plain values from another node" in report
    assert "plain values" not in ours.outputs["apply"]["text"][0]


@pytest.mark.comfyui("0.30", "its TrainLoraNode has other outputs")
def test_a_lora_that_core_trained_is_applied_as_core_applies_it(executor, slim_checkpoint):
    """TrainLoraNode's dict: through Add and Apply, and through core's own loader and graph."""
    train = node(
        "TrainLoraNode",
        model=["checkpoint", 0],
        latents=["latent", 0],
        positive=["caption", 0],
        batch_size=1,
        grad_accumulation_steps=1,
        steps=2,
        learning_rate=0.05,
        rank=2,
        optimizer="SGD",
        loss_function="MSE",
        seed=0,
        training_dtype="fp32",
        lora_dtype="fp32",
        quantized_backward=False,
        algorithm="LoRA",
        gradient_checkpointing=False,
        checkpoint_depth=1,
        offloading=False,
        existing_lora="[None]",
        bucket_mode=False,
        bypass_mode=False,
    )
    caption = node("CLIPTextEncode", text="a lighthouse", clip=["checkpoint", 1])
    add = node(
        "LoraWorkbenchAdd",
        lora_model=["train", 0],
        name="trained",
        strength_model=1.0,
        strength_clip=1.0,
    )
    ours = applied(slim_checkpoint, ("add", 0), train=train, caption=caption, add=add)
    ours["losses"] = node("LossGraphNode", loss=["train", 1], filename_prefix="loss")
    loader = node(
        "LoraModelLoader",
        model=["checkpoint", 0],
        lora=["train", 0],
        strength_model=1.0,
        bypass=False,
    )
    core = text_to_image(
        slim_checkpoint,
        model=("core", 0),
        extra={"train": train, "caption": caption, "core": loader},
    )
    result = executor.run(ours)
    (report,) = result.outputs["apply"]["text"]
    assert "OK <memory>/trained" in report
    assert result.outputs["losses"]["images"]
    assert_alike(result, executor.run(core))
    assert picture(result) != picture(executor.run(text_to_image(slim_checkpoint)))


@pytest.mark.comfyui("0.30", "its SaveLoRA has another id")
def test_core_saves_our_lora_model_and_the_file_is_the_same_lora(
    comfy, executor, slim_checkpoint, loras
):
    """A PEFT file through SaveLoRA: under names that core reads, and so do we."""
    load = node("LoraWorkbenchLoad", lora_name=loras[1], strength_model=1.0, strength_clip=1.0)
    save = node("SaveLoRA", lora=["load", 1], prefix="saved/ours", steps=2)
    executor.run({"load": load, "save": save})
    (written,) = (comfy.output_dir / "saved").glob("ours_2_steps_*.safetensors")
    shutil.copy(written, comfy.loras_dir / "packs" / "saved.safetensors")
    pictures = [
        picture(executor.run(applied(slim_checkpoint, ("stack", 0), stack=rows_of([name]))))
        for name in (loras[1], "packs/saved.safetensors")
    ]
    assert pictures[0] == pictures[1]
