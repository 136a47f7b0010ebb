"""Selectors: which weights of a model a rule names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from types import MappingProxyType
from typing import Protocol

from ..errors import LoraError, UnknownChoiceError
from ..models.blocks import block_of
from ..models.target import Target
from .parts import PARTS, is_in_part

_SHORT_BLOCK = re.compile(r"(IN|OUT|M|D|S)(\d{1,3})(?:-(?:\1)?(\d{1,3}))?", re.I | re.ASCII)
_LISTED_BLOCK = re.compile(r"([a-z_]\w*\.)(\d{1,3})(?:-(\d{1,3}))?", re.I | re.ASCII)
_BLOCK_NAME = re.compile(r"(.*?)(\d+)")
_COMPONENTS = ("te1", "te2", "te3", "unet")
_LAST_NUMBER = {"IN": 11, "OUT": 11, "M": 0}
_GLOB = re.compile(r"[^\s,=&]*\*[^\s,=&]*")


class UnknownSelectorError(UnknownChoiceError):
    """A rule selects by a name that is no block, part, component or glob."""

    def __init__(self, selector: str, rule: str) -> None:
        known = [*NAMES, "default", "M00", "D00", "S00", "blocks.00"]
        known += [f"{side}{number:02}" for side in ("IN", "OUT") for number in range(12)]
        super().__init__("selector", selector, known)
        note = "A glob over weight names needs a '*', as in '*.ff.*'; a comma separates rules."
        LoraError.__init__(self, self.headline, {"Rule": rule, **self.facts}, f"{self.fix} {note}")


class Selector(Protocol):
    """A condition on targets; its text is the canonical form of what was written."""

    def matches(self, target: Target) -> bool:
        """Tell whether the selector names this target."""
        ...


def _matches_te(target: Target) -> bool:
    return target.component.startswith("te")


def _matches_component(target: Target, component: str) -> bool:
    return target.component == component


def _matches_base(target: Target) -> bool:
    return block_of(target) == "BASE"


def _matches_part(target: Target, part: str) -> bool:
    return is_in_part(target.canonical, part)


NAMES: Mapping[str, Callable[[Target], bool]] = MappingProxyType(
    {
        "BASE": _matches_base,
        "te": _matches_te,
        **{name: partial(_matches_component, component=name) for name in _COMPONENTS},
        **{name: partial(_matches_part, part=name) for name in PARTS},
    }
)


@dataclass(frozen=True, slots=True)
class Named:
    """A key of ``NAMES``: ``BASE``, a component or a part."""

    name: str

    def matches(self, target: Target) -> bool:
        """Tell whether the target lies in what the name stands for."""
        return NAMES[self.name](target)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class BlockRange:
    """Blocks ``first`` to ``last`` (both included) of one list of blocks.

    ``blocks`` is ``IN``, ``M``, ``OUT``, ``D``, ``S``, or a list's own name in lower case with a
    closing dot.
    """

    blocks: str
    first: int
    last: int

    def matches(self, target: Target) -> bool:
        """Tell whether the target's block lies in the range."""
        found = _BLOCK_NAME.fullmatch(block_of(target))
        if found is None or found[1].lower() != self.blocks.lower():
            return False
        return self.first <= int(found[2]) <= self.last

    def __str__(self) -> str:
        end = "" if self.last == self.first else f"-{self.last:02}"
        return f"{self.blocks}{self.first:02}{end}"


@dataclass(frozen=True, slots=True)
class Glob:
    """A shell pattern over the whole storage name or the whole canonical name."""

    pattern: str

    def matches(self, target: Target) -> bool:
        """Tell whether either name fits, case as written."""
        names = (target.target_key, target.canonical)
        return any(fnmatchcase(name, self.pattern) for name in names)

    def __str__(self) -> str:
        return self.pattern


def parse_selector(text: str, rule: str) -> tuple[Selector, ...]:
    """Read selectors joined by ``&``.

    Args:
        text: For example ``OUT03-05 & attn``.
        rule: The rule as the user wrote it, for errors.

    Returns:
        One selector per term; all must hold.

    Raises:
        UnknownSelectorError: A term is no block, part, component or glob.
        LoraError: A range of blocks ends before it begins.
    """
    return tuple(_parse_term(term.strip(), rule) for term in text.split("&"))


def _parse_term(term: str, rule: str) -> Selector:
    if term in NAMES:
        return Named(term)
    if term.upper() == "BASE":
        return Named("BASE")
    if short := _SHORT_BLOCK.fullmatch(term):
        return _block_range(short[1].upper(), short, rule)
    if listed := _LISTED_BLOCK.fullmatch(term):
        return _block_range(listed[1].lower(), listed, rule)
    if _GLOB.fullmatch(term):
        return Glob(term)
    raise UnknownSelectorError(term, rule)


def _block_range(blocks: str, found: re.Match[str], rule: str) -> BlockRange:
    first = int(found[2])
    last = int(found[3] or found[2])
    if max(first, last) > _LAST_NUMBER.get(blocks, 999):
        raise UnknownSelectorError(found[0], rule)
    if last < first:
        raise LoraError(
            f"The range {found[0]!r} ends before it begins.",
            {"Rule": rule},
            f"write {str(BlockRange(blocks, last, first))!r}.",
        )
    return BlockRange(blocks, first, last)
