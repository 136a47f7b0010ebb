"""Run graphs on the embedded host in a process of its own: ComfyUI's cannot import diffusers here.

    python embedded_run.py MODELS OUTPUT < graphs.json

Reads a list of prompts; runs them one after the other in one host. ``KeepTensor`` nodes put their
tensor into OUTPUT/<run>.safetensors under their ``name``. Prints one JSON line a run: nodes
executed, cached, pictures, error.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from lora_workbench.headless.graph import Runner, validate
from lora_workbench.hosts.embedded.folders import Folders
from lora_workbench.hosts.embedded.host import EmbeddedHost
from lora_workbench.hosts.embedded.nodes import core_mappings
from lora_workbench.nodes import node_mappings


def keep_tensor(kept):
    """An output node that puts what it gets into ``kept``."""

    class KeepTensor:
        RETURN_TYPES = ()
        OUTPUT_NODE = True
        FUNCTION = "keep"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            kinds = {"latent": ("LATENT",), "conditioning": ("CONDITIONING",), "image": ("IMAGE",)}
            return {"required": {"name": ("STRING", {})}, "optional": kinds}

        @classmethod
        def IS_CHANGED(cls, **_):  # noqa: N802
            return float("nan")  # runs each time, though its inputs are known

        def keep(self, name, latent=None, conditioning=None, image=None):
            if latent is not None:
                kept[name] = latent["samples"].clone()
            if image is not None:
                kept[name] = image.clone()
            if conditioning is not None:
                states, pooled = parts_of(conditioning)
                kept[name] = states.clone()
                if pooled is not None:
                    kept[f"{name}.pooled"] = pooled.clone()
            return ()

    return KeepTensor


def parts_of(conditioning):
    """States and pooled output, of ComfyUI's list or of ours."""
    if isinstance(conditioning, list):
        ((states, extra),) = conditioning
        return states, extra.get("pooled_output")
    return conditioning.states, conditioning.pooled


def main():
    models, output = map(Path, sys.argv[1:])
    folders = Folders(models, output / "in", output, output / "temp", output / "user")
    host = EmbeddedHost(folders)
    kept = {}
    classes = core_mappings(host)[0] | node_mappings(host)[0] | {"KeepTensor": keep_tensor(kept)}
    runner = Runner(classes)
    for number, prompt in enumerate(json.load(sys.stdin)):
        kept.clear()
        valid = validate(prompt, classes)
        if not valid.ok or valid.node_errors:
            print(json.dumps({"error": valid.error, "node_errors": valid.node_errors}), flush=True)
            continue
        result = runner.run(valid.prompt, "", {}, valid.outputs)
        if kept:
            tensors = {name: tensor.contiguous() for name, tensor in kept.items()}
            save_file(tensors, output / f"{number}.safetensors")
        pictures = [
            image["filename"] for ui in result.outputs.values() for image in ui.get("images", ())
        ]
        record = {"executed": result.executed, "cached": result.cached, "pictures": pictures}
        record |= {"status": result.status, "error": result.error and str(result.error)}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
