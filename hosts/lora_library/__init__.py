"""What a person sees of LoRA files before anything runs: a list, facts, verdicts. Only reads."""

from .library import Library

__all__ = ["Library"]
