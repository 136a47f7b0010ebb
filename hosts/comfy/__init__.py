"""ComfyUI as a host: the only package that imports ComfyUI."""

from .host import ComfyHost
from .server import offer_routes

__all__ = ["ComfyHost", "offer_routes"]
