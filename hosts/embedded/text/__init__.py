"""Prompts: syntax, tokens, and what text encoders make of them, as in ComfyUI."""

from .conditioning import Conditioning, encode

__all__ = ["Conditioning", "encode"]
