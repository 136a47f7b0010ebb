"""Names that are still free."""

from pathlib import Path


def new_file(folder: Path, name: str) -> Path:
    """Create an empty file that did not exist: ``name``, or with -1, -2, ... before its ending."""
    path, number = folder / name, 0
    while True:
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
            path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
        else:
            return path
