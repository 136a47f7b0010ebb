"""A checkpoint that ComfyUI and the embedded host both load, and two LoRAs for it.

    python slim_files.py COMFYUI CACHE CHECKPOINT LORA LORA

In a process of its own, for ComfyUI's classes give the names. The second LoRA also has a module
that the model lacks.
"""

import sys
from pathlib import Path


def main(comfyui, cache, checkpoint, first, second):
    sys.path[:0] = [str(Path(__file__).parents[1] / "comfy"), comfyui]
    sys.argv = ["main.py", "--cpu"]
    import torchvision_stub

    torchvision_stub.install()
    import comfy.options

    comfy.options.enable_args_parsing()
    from checkpoints import SLIM, LoraTarget, cached_checkpoint, lora_targets, write_lora

    Path(checkpoint).symlink_to(cached_checkpoint(Path(cache), SLIM))
    targets = lora_targets(SLIM)
    absent = LoraTarget("unet.down_blocks.9.resnets.0.conv1", "", (320, 320, 3, 3))
    write_lora(Path(first), targets, rank=4, alpha=2.0, seed=1)
    write_lora(Path(second), [*targets, absent], rank=4, alpha=4.0, seed=2)


main(*sys.argv[1:])
