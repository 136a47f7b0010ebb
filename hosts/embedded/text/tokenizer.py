"""CLIP's byte-pair encoding: from plain text to token ids."""

import os
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from ....lora_core.errors import LoraError

START, END = 49406, 49407
FOLDER_VARIABLE = "LORA_WORKBENCH_TOKENIZER"
_START_TEXT, _END_TEXT = "<|startoftext|>", "<|endoftext|>"

Tokenizer = Callable[[str], Sequence[int]]
"""Token ids of a text, without the start and end tokens around it."""


def clip_tokenizer(folder: Path | None = None) -> Tokenizer:
    """CLIP's tokenizer, kept once it is loaded.

    Args:
        folder: Holds ``vocab.json`` and ``merges.txt``. It is read where the package
            instant-clip-tokenizer is not installed and the environment variable
            LORA_WORKBENCH_TOKENIZER names no other folder.

    Raises:
        LoraError: neither the package nor a folder is there, or the folder's vocabulary is not
            CLIP's.
    """
    try:
        return _packaged()
    except ImportError:
        found = os.environ.get(FOLDER_VARIABLE) or folder
    if not found:
        raise LoraError(
            "Reading prompts needs instant-clip-tokenizer, which is not installed.",
            {"Without it": f"{FOLDER_VARIABLE}=FOLDER with CLIP's vocab.json and merges.txt"},
            'pip install "comfyui-lora-workbench[headless]" (Python 3.10 to 3.12), or name a '
            "folder, such as a diffusers model's tokenizer/.",
        )
    return _from_folder(Path(found))


@lru_cache(maxsize=1)
def _packaged() -> Tokenizer:
    from instant_clip_tokenizer import Tokenizer as ClipTokenizer

    encode = ClipTokenizer().encode

    def ids(text: str) -> list[int]:
        """The package reads no special tokens and does not compose letters: done here."""
        found: list[int] = []
        for index, piece in enumerate(text.split(_END_TEXT)):
            found += [END] if index else []
            for inner, plain in enumerate(_folded(piece).split(_START_TEXT)):
                found += [START] if inner else []
                found += encode(plain)
        return found

    return ids


def _folded(text: str) -> str:
    """Composed and in lower case, letter by letter: no final sigma, whatever follows it.

    Source: the normaliser of transformers' CLIPTokenizer, which has the same ids for each letter
    of Unicode 14.
    """
    if text.isascii():
        return text.lower()
    return "".join(letter.lower() for letter in unicodedata.normalize("NFC", text))


@lru_cache(maxsize=4)
def _from_folder(folder: Path) -> Tokenizer:
    from transformers import CLIPTokenizerFast

    problem = {"Folder": folder, "Expected": "CLIP's vocab.json and merges.txt"}
    fix = "name a folder such as a diffusers model's tokenizer/."
    if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise LoraError("The folder holds no tokenizer.", problem, fix)
    try:
        tokenizer = CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # tokenizers raises no class of its own
        raise LoraError("The tokenizer cannot be read.", problem | {"Cause": error}, fix) from error
    if tokenizer("")["input_ids"] != [START, END]:
        raise LoraError("The tokenizer's vocabulary is not CLIP's.", problem, fix)
    # Not verbose: CLIP's length limit is no limit here, prompts are cut into chunks.
    return lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
