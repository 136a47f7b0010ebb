"""Live panels in ComfyUI: events to the page that queued the run, at most ten a second."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, Literal

from comfy.model_management import (
    InterruptProcessingException,
    throw_exception_if_processing_interrupted,
)
from comfy.utils import ProgressBar
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..live_panel import Panel, PanelKey, Panels

EVENT = "lora_workbench.live"
_INTERVAL = 0.1  # seconds between two events
_LONGEST_SIDE = 1024  # pixels of a picture


class ComfyLive:
    """See ``Live``."""

    def __init__(self, panel: Panel, changed: Event) -> None:
        self._panel, self._changed = panel, changed
        self._bar = ProgressBar(1)

    def progress(self, step: int, total: int, text: str = "") -> None:
        """See ``Live.progress``; ComfyUI's own bar moves too."""
        throw_exception_if_processing_interrupted()
        self._bar.update_absolute(step, total)
        self._panel.progress(step, total, text)
        self._changed.set()

    def point(self, series: str, x: float, y: float) -> None:
        """See ``Live.point``."""
        self._panel.point(series, x, y)
        self._changed.set()

    def picture(self, image: Tensor, caption: str = "") -> None:
        """See ``Live.picture``."""
        self._panel.picture(_encoded(image), "image/jpeg", caption)
        self._changed.set()

    def stop_requested(self) -> Literal["keep"] | None:
        """See ``Live.stop_requested``."""
        return "keep" if self._panel.is_asked_to_keep() else None


@contextmanager
def live(panels: Panels, node_id: str) -> Iterator[ComfyLive]:
    """See ``Host.live``."""
    panel = panels.open(_key(node_id))
    changed, over = Event(), Event()
    server = _server()
    client = server.client_id if server is not None else None

    def send() -> None:
        event = panel.take()
        if event is not None and client is not None:
            server.send_sync(EVENT, event, client)

    def follow() -> None:
        while not over.is_set():
            changed.wait()
            changed.clear()
            send()
            over.wait(_INTERVAL)

    sender = Thread(target=follow, name="lora_workbench.live", daemon=True)
    changed.set()
    sender.start()
    end = "failed"
    try:
        yield ComfyLive(panel, changed)
        end = "kept" if panel.is_asked_to_keep() else "done"
    except InterruptProcessingException:
        end = "stopped"
        raise
    finally:
        panel.end(end)
        over.set()
        changed.set()
        sender.join()
        send()


def _key(node_id: str) -> PanelKey:
    context = get_executing_context()
    prompt = context.prompt_id if context is not None else ""
    return PanelKey(_workflow_of(prompt), prompt, node_id)


def _workflow_of(prompt: str) -> str:
    """Id of the canvas's workflow that a running prompt came from; empty without one."""
    queue = getattr(_server(), "prompt_queue", None)
    if queue is None:
        return ""
    with queue.mutex:
        running = [item for item in queue.currently_running.values() if item[1] == prompt]
    extra = running[0][3] if running else {}
    workflow = (extra.get("extra_pnginfo") or {}).get("workflow")
    return str(workflow.get("id") or "") if isinstance(workflow, dict) else ""


def _server() -> Any:
    """The running server, or None in a script; see ``server.py`` on why it is looked up."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _encoded(image: Tensor) -> bytes:
    from PIL import Image

    values = image.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    picture = Image.fromarray(values)
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
