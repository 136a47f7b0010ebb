"""What the page asks about live panels, and how it wishes a node to stop and keep."""

import json
from typing import Any

from aiohttp import web

from ..live_panel import Panels

_ROOT = "/lora_workbench"
_LARGEST_BODY = 4096  # bytes


def add_live_routes(routes: Any, panels: Panels) -> None:
    """Add the routes to a server's table.

    Args:
        routes: An aiohttp ``RouteTableDef``.
        panels: The host's.
    """
    if any(getattr(route, "path", None) == f"{_ROOT}/live" for route in routes):
        return  # two copies of the pack
    answers = LiveAnswers(panels)
    routes.get(f"{_ROOT}/live")(answers.states)
    routes.get(f"{_ROOT}/live_picture")(answers.picture)
    routes.post(f"{_ROOT}/keep")(answers.keep)


class LiveAnswers:
    """One method per route.

    Args:
        panels: The host's.
    """

    def __init__(self, panels: Panels) -> None:
        self._panels = panels

    async def states(self, request: web.Request) -> web.Response:
        """All panels, or those of a workflow, of a node."""
        workflow, node = request.query.get("workflow"), request.query.get("node")
        found = [panel.snapshot() for panel in self._panels.of_workflow(workflow)]
        shown = [state for state in found if node in (None, state["node"])]
        return web.json_response({"panels": shown})

    async def picture(self, request: web.Request) -> web.Response:
        """One of the last pictures of a panel."""
        query = request.query
        panel = self._panels.get(query.get("prompt", ""), query.get("node", ""))
        shown = panel.picture_of(query.get("number", "")) if panel is not None else None
        if shown is None:
            return _refusal(404, "This picture is not there any more.", "look at a newer one.")
        headers = {
            "Content-Type": shown.kind,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, max-age=86400, immutable",
        }
        return web.Response(body=shown.data, headers=headers)

    async def keep(self, request: web.Request) -> web.Response:
        """Note the wish that a node stops and keeps what it has."""
        # JSON alone: a page of another site can post forms, and JSON only after asking.
        if request.content_type != "application/json":
            return _refusal(415, "The request is not JSON.", "send application/json.")
        if not 0 < (request.content_length or 0) <= _LARGEST_BODY:
            return _refusal(413, "The request has no size, or a large one.", "send two ids.")
        try:
            asked = json.loads(await request.read())
            panel = self._panels.get(asked["prompt"], asked["node"])
        except (ValueError, KeyError, TypeError):
            fix = 'send {"prompt": ID, "node": ID}.'
            return _refusal(400, "The request does not name a node of a run.", fix)
        if panel is None or not panel.ask_to_keep():
            return _refusal(404, "This node does not run any more.", "look at its last state.")
        return web.json_response({"keep": True})


def _refusal(status: int, headline: str, fix: str) -> web.Response:
    error = {"headline": headline, "facts": {}, "fix": fix}
    return web.json_response({"error": error}, status=status)
