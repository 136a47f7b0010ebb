"""ComfyUI's entry. As a library, import ``lora_workbench.lora_core``; nothing is loaded here."""

WEB_DIRECTORY = "./web"
_MAPPINGS = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")


def __getattr__(name: str) -> object:
    """Bind the node classes to ComfyUI when it asks for them."""
    if name not in _MAPPINGS:
        raise AttributeError(name)
    from .hosts.comfy import ComfyHost
    from .nodes import node_mappings

    globals().update(zip(_MAPPINGS, node_mappings(ComfyHost()), strict=True))
    return globals()[name]
