"""Prompts: syntax, tokens, and what text encoders make of them, as in ComfyUI."""

from .conditioning import Conditioning, encode, encode_for_training

__all__ = ["Conditioning", "encode", "encode_for_training"]
