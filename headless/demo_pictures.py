"""The demo's last part: what each LoRA does to pictures, seen and measured."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .run_embedded import missing_libraries
from .text_table import text_table

if TYPE_CHECKING:
    from PIL.Image import Image


def show_pictures(scratch: Path, grid: Path) -> bool:
    """Run the example graphs, print a table, and write the grid.

    Args:
        scratch: For what the graphs write.
        grid: The picture to write.

    Returns:
        Whether the pictures after un-merging are the base's; True where libraries are missing.
    """
    print("\n5. The example graphs without ComfyUI, on a small model of SD1.5's structure")
    missing = missing_libraries()
    if missing:
        fix = 'pip install "comfyui-lora-workbench[headless]"'
        print(f"   left out: {', '.join(missing)} not installed; {fix}")
        return True
    from .demo_graphs import CAPTIONS, COLUMNS, PER_CAPTION, draw
    from .picture_grid import picture_grid

    started = time.perf_counter()
    drawn = draw(scratch)
    labels = [column.label for column in COLUMNS]
    rows = [
        [drawn.pictures[label][row * PER_CAPTION] for label in labels]
        for row in range(len(CAPTIONS))
    ]
    picture_grid(rows, labels, CAPTIONS).save(grid)
    _print_distances(drawn.pictures)
    for example, outcome in drawn.others.items():
        print(f"   {example}: {outcome}")
    base, back = (_bytes(drawn.pictures[label]) for label in ("base", "un-merged"))
    seconds = time.perf_counter() - started
    print(f"   {drawn.executed} nodes run, {drawn.cached} known from before, {seconds:.0f} s")
    print(f"   pictures after un-merging are the base's: {'yes' if base == back else 'no'}")
    print(f"   the grid: {grid}")
    sys.stdout.flush()
    return base == back


def _print_distances(pictures: "Mapping[str, Sequence[Image]]") -> None:
    """Per column, how far its pictures are from each style's training pictures."""
    from .demo_model.pictures import STYLES
    from .demo_model.style import style_distance

    head = ("pictures", *(f"distance to {style}" for style in STYLES))
    rows = [
        (label.replace("\n", " "), *(f"{style_distance(made, style):.2f}" for style in STYLES))
        for label, made in pictures.items()
    ]
    print("\n".join(text_table([head, *rows], indent="   ")))


def _bytes(pictures: "Sequence[Image]") -> list[bytes]:
    return [picture.tobytes() for picture in pictures]
