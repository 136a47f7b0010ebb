"""A pack of the tests: a node that works for a while and shows it in a live panel."""

import time

import torch

import nodes


class LiveProbe:
    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = "tests"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {"steps": ("INT", {"default": 200, "max": 9999}), "label": ("STRING", {})},
            "hidden": {"lora_workbench_live": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, **_):  # noqa: N802
        return float("nan")

    def execute(self, steps, label, lora_workbench_live):
        host = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchApply"].host
        with host.live(lora_workbench_live) as live:
            for step in range(1, steps + 1):
                time.sleep(0.05)
                live.progress(step, steps, label)
                live.point("loss", step, 1 / step)
                live.point("validation", step, 1.5 / step)
                if step % 10 == 1:
                    live.picture(torch.full((48, 64, 3), step / steps), f"step {step}")
                if live.stop_requested() == "keep":
                    break
        kept = f"{label}: {step} of {steps}"
        return {"ui": {"text": [kept]}, "result": (kept,)}


NODE_CLASS_MAPPINGS = {"LiveProbe": LiveProbe}
