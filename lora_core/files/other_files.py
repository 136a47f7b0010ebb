"""Files that are often saved under the name of a file of tensors, known by their first bytes."""

from io import FileIO
from pathlib import Path

from ..errors import UnsupportedFormatError

_LONGEST = 64
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"GIF8")
_LFS_POINTER = b"version https://git-lfs"
_WEB_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")


def refuse_other_files(handle: FileIO, path: Path) -> None:
    """Check the first bytes of a file that was just opened; the position is as before.

    None of these begins a safetensors file: as a header's length they are beyond what is read.

    Raises:
        UnsupportedFormatError: it is a picture, a web page, or a pointer of Git LFS.
    """
    head = handle.read(_LONGEST) or b""
    handle.seek(0)
    found = _kind(head)
    if found is not None:
        what, fix = found
        raise UnsupportedFormatError(f"{path.name}: this is {what}.", {"file": path}, fix)


def _kind(head: bytes) -> tuple[str, str] | None:
    if head.startswith(_LFS_POINTER):
        return (
            "a Git LFS pointer, not the file it stands for",
            "run `git lfs pull` in its repository, or download the file itself.",
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGES):
        return "a web page, not a model", "download the file again; the site may want a login."
    if head.startswith(_PICTURES):
        return "a picture, not a model", "choose the model that the picture belongs to."
    return None
