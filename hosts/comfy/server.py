"""ComfyUI's server, when there is one."""

import sys
from typing import Any

from .host import ComfyHost


def offer_routes(host: ComfyHost) -> None:
    """Let the page ask about the host's LoRA files; does nothing where no server runs.

    Custom nodes are loaded before the server takes its routes; scripts load nodes without any.
    """
    routes = _routes()
    if routes is not None:
        from .routes import add_routes

        add_routes(routes, host.files)


def _routes() -> Any:
    """The running server's table of routes, or None.

    Looked up, not imported: ``import server`` brings in a web server that a script does not need.
    """
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    return getattr(getattr(server, "instance", None), "routes", None)
