"""What the node classes say, as ComfyUI's locale files hold it; `make locales` writes it."""

import json
from pathlib import Path

from lora_workbench.nodes import NODES

LOCALES = Path(__file__).parents[1] / "locales"


class _Host:
    def lora_names(self):
        return ["a.safetensors"]


def node_texts():
    """The content of locales/en/nodeDefs.json: each node's names and tooltips, in its order."""
    return {node.__name__: _texts_of(node.bound_to(_Host())) for node in NODES}


def _texts_of(node):
    inputs = node.INPUT_TYPES()
    entries = [*inputs["required"].items(), *inputs["optional"].items()]
    outputs = zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True)
    return {
        "display_name": node.DISPLAY_NAME,
        "description": node.DESCRIPTION,
        "inputs": {name: _slot(name, options["tooltip"]) for name, (_, options) in entries},
        "outputs": {str(place): _slot(*output) for place, output in enumerate(outputs)},
    }


def _slot(name, tooltip):
    return {"name": name, "tooltip": tooltip}


def main():
    text = json.dumps(node_texts(), indent=2, ensure_ascii=False)
    (LOCALES / "en" / "nodeDefs.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
