"""Captions as they are written in files."""

import codecs
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...lora_core.errors import LoraError

_SHOWN = 10


def read_captions(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Read caption files.

    UTF-8 with and without a byte order mark, and UTF-16 with one (Notepad's "Unicode"). Any other
    encoding could only be guessed, and a wrong guess trains wrong words, so that it is refused.

    Returns:
        Each text on one line, with what is remarkable about its file, or an empty text.

    Raises:
        LoraError: names all files that cannot be read, or are not text in these encodings.
    """
    found, wrong, lost = [], {}, {}
    for path in paths:
        try:
            found.append(_decoded(path.read_bytes()))
        except UnicodeDecodeError as error:
            wrong[path.name] = f"byte {error.start}: {error.reason}"
        except OSError as error:
            lost[path.name] = error.strerror or str(error)
    if lost:
        raise LoraError(
            f"{len(lost)} caption file{'s' if len(lost) > 1 else ''} cannot be read.",
            _some(lost),
            "mend or delete them; a name that is not UTF-8 (shown with ?) needs another.",
        )
    if wrong:
        raise LoraError(
            f"{len(wrong)} caption file{'s are' if len(wrong) > 1 else ' is'} not UTF-8.",
            _some(wrong),
            "save them as UTF-8 in a text editor.",
        )
    return found


def _some(found: Mapping[str, str]) -> dict[str, object]:
    more = {"and more": len(found) - _SHOWN} if len(found) > _SHOWN else {}
    return {**dict(list(found.items())[:_SHOWN]), **more}


def _decoded(data: bytes) -> tuple[str, str]:
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    if "\0" in text:  # UTF-16 without its mark, where it passes for UTF-8
        at = data.index(0)
        raise UnicodeDecodeError("utf-8", data, at, at + 1, "zero byte")
    if is_utf16:
        remark = "UTF-16"
    elif len(text.strip().splitlines()) > 1:
        remark = "several lines"
    else:
        remark = ""
    return " ".join(text.split()), remark
