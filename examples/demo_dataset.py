"""Folders of drawn pictures with captions, as a user would have them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from instant_clip_tokenizer import Tokenizer

from lora_workbench.headless.demo_model.pictures import Scene, Style, draw_scene

_SUBJECT_ONLY, _UNKNOWN = 0.1, 0.15
_FIRST_TOKEN, _LAST_TOKEN, _SHORTEST = 1000, 40000, 3


def write_pictures(folder: Path, scenes: Sequence[Scene], style: Style, seed: int) -> None:
    """Draw scenes, each with a text file beside it; made whole or not at all.

    One caption in ten names the subject alone. Some get words that are in no other one, so that
    words without meaning change little.

    Args:
        folder: Is left as it is when it exists.
        scenes: One picture each.
        style: Of all of them.
        seed: Of what captions say.
    """
    if folder.exists():
        return
    draft = folder.with_name(f"{folder.name}.new")
    draft.mkdir(parents=True, exist_ok=True)
    draw, words = np.random.default_rng(seed), _unknown_words(scenes)
    for number, scene in enumerate(scenes):
        draw_scene(scene, style).save(draft / f"{number:04}.png")
        (draft / f"{number:04}.txt").write_text(_caption(scene, draw, words), encoding="utf-8")
    draft.rename(folder)


def _caption(scene: Scene, draw: np.random.Generator, words: Sequence[str]) -> str:
    said = scene.subject if draw.random() < _SUBJECT_ONLY else scene.caption
    if draw.random() < _UNKNOWN:
        said = " ".join([said, *draw.choice(words, draw.integers(1, 6))])
    return said


def _unknown_words(scenes: Sequence[Scene]) -> list[str]:
    """CLIP's words of one token, without those of the captions."""
    known = {word for scene in scenes for word in scene.caption.split()}
    decode = Tokenizer().decode
    words = (decode([token]).strip() for token in range(_FIRST_TOKEN, _LAST_TOKEN))
    plain = (word for word in words if word.isascii() and word.isalpha() and word not in known)
    return [word for word in plain if len(word) >= _SHORTEST]
