"""Block names, the units of a block weighting."""

import re

from .target import Target

_BLOCK_LIST = re.compile(r"(\w*(?:blocks|layers|refiner))\.(\d+)\.")
_NUMBERED = re.compile(r"(.*?)(\d*)")
_ORDER = ("BASE", "IN", "M", "OUT")
_SHORT = {"input_blocks": "IN", "output_blocks": "OUT", "double_blocks": "D", "single_blocks": "S"}


def block_of(target: Target) -> str:
    """Name the block that a target lies in.

    Args:
        target: Any target of a model.

    Returns:
        ``IN00``.., ``M00`` or ``OUT00``.. by ldm block number for UNets; ``D00``.. and ``S00``..
        for double and single transformer blocks; ``<list name>.NN`` for any other list of blocks,
        as the model names it; ``BASE`` for text encoders and everything outside a block.
    """
    if target.component != "unet":
        return "BASE"
    if target.canonical.startswith("middle_block."):
        return "M00"
    found = _BLOCK_LIST.search(target.canonical)
    if found is None:
        return "BASE"
    list_name, number = found[1], f"{int(found[2]):02}"
    short = _SHORT.get(list_name)
    return f"{short}{number}" if short else f"{list_name}.{number}"


def block_rank(block: str) -> tuple[int, str, int]:
    """Sort key of block names: ``BASE``, a UNet from input to output, then lists by name."""
    found = _NUMBERED.fullmatch(block)
    name, number = (found[1], found[2]) if found else (block, "")
    place = _ORDER.index(name) if name in _ORDER else len(_ORDER)
    return place, name, int(number or 0)
