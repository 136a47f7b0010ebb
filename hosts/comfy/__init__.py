"""ComfyUI as a host: the only package that imports ComfyUI."""

from .host import ComfyHost

__all__ = ["ComfyHost"]
