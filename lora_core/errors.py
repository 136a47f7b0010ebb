"""Errors of the core: a headline, the facts, and what to do."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

# What ComfyUI shows before a message; it loads the pack as a module named after its folder's path.
# Pickle would look the class up in this module, but no error leaves its process, and copies and
# threads do not look.
_SHOWN_MODULE = "lora_workbench"


class LoraError(ValueError):
    """The input cannot be used; the message says why and what to change.

    The text is ``headline``, one indented ``name: value`` line per fact, then ``Fix: ...``.
    """

    __module__ = _SHOWN_MODULE

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__module__ = _SHOWN_MODULE

    def __init__(
        self, headline: str, facts: Mapping[str, object] | None = None, fix: str = ""
    ) -> None:
        self.headline, self.facts, self.fix = headline, dict(facts or {}), fix
        lines = [headline, *(f"  {name}: {value}" for name, value in self.facts.items())]
        super().__init__("\n".join([*lines, f"Fix: {fix}"] if fix else lines))


class FailedError(LoraError):
    """The input was fine, but the work could not be done; what was done before is kept."""


class DamagedFileError(LoraError):
    """A file breaks its own format."""


class UnsupportedFormatError(LoraError):
    """A file or module is of a kind that is recognised but cannot be applied."""


class ShapeMismatchError(LoraError):
    """A tensor's shape does not fit the weight that its name addresses."""


class NothingMatchedError(LoraError):
    """No tensor of a LoRA addresses a weight of this model."""


class UnusableModelError(LoraError):
    """The base could not be proved restored; the model must be loaded again."""


class UnknownChoiceError(LoraError):
    """A name is not in the collection it was looked up in.

    ``prefix`` stands before all of the names, and makes none of them alike.
    """

    def __init__(self, what: str, got: str, known: Iterable[str], prefix: str = "") -> None:
        choices = sorted(known)
        near = get_close_matches(got, choices, n=1)
        hint = f"use {prefix + near[0]!r}." if near else "use one of the known names."
        facts = {"Known": ", ".join(prefix + choice for choice in choices)}
        super().__init__(f"Unknown {what} {prefix + got!r}.", facts, hint)
