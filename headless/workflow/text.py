"""What the canvas does to texts when it makes a prompt: choices, comments, file name patterns."""

import random
import re
from collections.abc import Mapping, Sequence
from datetime import datetime

from .graph import ABSENT, Node

# ComfyUI frontend: Comfy.SaveImageExtraOutput, the nodes whose file names have patterns (1.47).
SAVING_NODES = frozenset(
    (
        *("SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP"),
        *("SaveWEBM", "SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced"),
        *("SaveGLB", "Save3DAdvanced", "SaveGaussianSplat", "SavePointCloud", "SaveAnimatedPNG"),
        *("CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent"),
    )
)

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n\r\u2028\u2029]*", re.DOTALL)
_ESCAPED = re.compile(r"\\([{}|])")
_PATTERN = re.compile(r"%([^%]+)%")
_DATE_PART = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
_NOT_IN_FILE_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')


def dynamic_prompt(text: str, rng: random.Random) -> str:
    """Drop C comments and take one of each ``{a|b}`` at random; a backslash keeps ``{ } |``."""
    text, done, position = _COMMENT.sub("", text), "", 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\\":
            done += text[position - 1 : position + 1]
            position += 1
        elif char == "{":
            options, position = _options(text, position)
            done += dynamic_prompt(rng.choice(options), rng)
        else:
            done += char
    return _ESCAPED.sub(r"\1", done)


def _options(text: str, position: int) -> tuple[list[str], int]:
    """The choices of a block that starts at ``position``, and where the text goes on."""
    options, depth = [""], 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\\":
            char = text[position - 1 : position + 1]
            position += 1
        elif char == "}" and not depth:
            break
        elif char == "|" and not depth:
            options.append("")
            continue
        depth += (char == "{") - (char == "}")
        options[-1] += char
    return options, position


def fill_patterns(text: str, nodes: Sequence[Node], now: datetime) -> str:
    """Replace ``%date:yyyy-MM-dd%`` and ``%node title.widget%`` in a file name."""

    def replaced(match: re.Match[str]) -> str:
        name, *rest = match[1].split(".")
        if len(rest) != 1:
            return format_date(name[5:], now) if name.startswith("date:") else match[0]
        node = _named(nodes, name)
        widget = node.widget(rest[0]) if node else None
        if widget is None:
            return match[0]
        value = "" if widget.value in (None, ABSENT) else _as_javascript(widget.value)
        return _NOT_IN_FILE_NAMES.sub("_", value)

    return _PATTERN.sub(replaced, text)


def _named(nodes: Sequence[Node], name: str) -> Node | None:
    by_property = (node for node in nodes if node.properties.get("Node name for S&R") == name)
    by_title = (node for node in nodes if node.title == name)
    return next(by_property, next(by_title, None))


def _as_javascript(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def format_date(pattern: str, now: datetime) -> str:
    """Replace d, M, h, m, s (doubled: two digits), yy and yyyy."""
    parts: Mapping[str, int] = {
        "d": now.day,
        "M": now.month,
        "h": now.hour,
        "m": now.minute,
        "s": now.second,
    }

    def replaced(match: re.Match[str]) -> str:
        part = match[0]
        if part[0] in parts:
            return str(parts[part[0]]).rjust(len(part), "0")
        years = {"yy": str(now.year)[2:], "yyyy": str(now.year)}
        return years.get(part, part)

    return _DATE_PART.sub(replaced, pattern)
