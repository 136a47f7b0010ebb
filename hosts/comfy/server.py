"""ComfyUI's server, when there is one."""

import sys
from typing import Any

from .host import ComfyHost


def offer_routes(host: ComfyHost) -> None:
    """Let the page ask about LoRA files and live panels; does nothing where no server runs.

    Custom nodes are loaded before the server takes its routes; scripts load nodes without any.
    """
    routes = _routes()
    if routes is not None:
        from .live_routes import add_live_routes
        from .routes import add_routes

        add_routes(routes, host.files)
        add_live_routes(routes, host.panels)


def _routes() -> Any:
    """The running server's table of routes, or None.

    Looked up, not imported: ``import server`` brings in a web server that a script does not need.
    """
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    return getattr(getattr(server, "instance", None), "routes", None)
