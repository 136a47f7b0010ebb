"""ComfyUI's entry, and as a library ``applied`` and ``merge``; nothing is loaded before its use."""

WEB_DIRECTORY = "./web"
_MAPPINGS = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")
_LIBRARY = ("applied", "merge")


def __getattr__(name: str) -> object:
    """Bind the node classes to ComfyUI when it asks for them; import the library when used."""
    if name in _LIBRARY:
        from .hosts.embedded import pipelines

        return getattr(pipelines, name)
    if name not in _MAPPINGS:
        raise AttributeError(name)
    from .hosts.comfy import ComfyHost, offer_routes
    from .nodes import node_mappings

    host = ComfyHost()
    offer_routes(host)
    globals().update(zip(_MAPPINGS, node_mappings(host), strict=True))
    return globals()[name]
