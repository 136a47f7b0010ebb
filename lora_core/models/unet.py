"""UNet names: the correspondence of ldm and diffusers naming, walked from the actual names."""

from collections.abc import Iterable, Iterator
from itertools import count

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_BLOCK_LISTS = {
    "input_blocks": ("down_blocks", "downsamplers"),
    "middle_block": ("mid_block", ""),
    "output_blocks": ("up_blocks", "upsamplers"),
}
_KIND_OF_MEMBER = {
    "in_layers": "resnets",
    "proj_in": "attentions",
    "op": "samplers",
    "conv": "samplers",
}
_INNER = {
    "resnets": _RESNET,
    "attentions": {},
    "downsamplers": {"op": "conv"},
    "upsamplers": {},
}

LDM_ROOTS = frozenset({*_BLOCK_LISTS, "out", "time_embed", "label_emb"})
DIFFUSERS_ROOTS = frozenset(
    {"down_blocks", "mid_block", "up_blocks", "conv_in", "conv_norm_out", "conv_out"}
    | {"time_embedding", "add_embedding", "class_embedding"}
)


def diffusers_modules_of_ldm(modules: Iterable[str]) -> dict[str, str]:
    """Map the ldm module names of one UNet to the names diffusers gives the same modules.

    Args:
        modules: ldm module names without prefix, e.g. ``input_blocks.1.0.in_layers.0``.

    Returns:
        ldm name -> diffusers name, for every module that diffusers has a name for.
    """
    names = list(modules)
    blocks = _blocks_of_ldm(names)
    mapped = {}
    for name in names:
        depth = 2 if name.startswith("middle_block.") else 3
        parts = name.split(".")
        block, inner = ".".join(parts[:depth]), ".".join(parts[depth:])
        if name in _OUTSIDE:
            mapped[name] = _OUTSIDE[name]
        elif block in blocks:
            kind = blocks[block].split(".")[-2]
            mapped[name] = f"{blocks[block]}.{_INNER[kind].get(inner, inner)}"
    return mapped


def ldm_modules_of_diffusers(modules: Iterable[str]) -> dict[str, str]:
    """Map the diffusers module names of one UNet to the names ldm gives the same modules.

    Args:
        modules: diffusers module names without prefix, e.g. ``down_blocks.0.resnets.0.norm1``.

    Returns:
        diffusers name -> ldm name, for every module that ldm has a name for.
    """
    names = list(modules)
    blocks = dict(_blocks_of_diffusers({_diffusers_block(name) for name in names}))
    outside = {theirs: ours for ours, theirs in _OUTSIDE.items()}
    mapped = {}
    for name in names:
        plain = name.replace("class_embedding.", "add_embedding.", 1)
        block = _diffusers_block(name)
        if plain in outside:
            mapped[name] = outside[plain]
        elif block in blocks:
            inner = name[len(block) + 1 :]
            back = {theirs: ours for ours, theirs in _INNER[block.split(".")[-2]].items()}
            mapped[name] = f"{blocks[block]}.{back.get(inner, inner)}"
    return mapped


def _blocks_of_ldm(modules: Iterable[str]) -> dict[str, str]:
    """Walk the blocks in ldm order; a sampler ends a level."""
    kinds: dict[str, dict[tuple[int, ...], str]] = {name: {} for name in _BLOCK_LISTS}
    for module in modules:
        list_name, *rest = module.split(".")
        depth = 1 if list_name == "middle_block" else 2
        if list_name in kinds and len(rest) > depth and rest[depth] in _KIND_OF_MEMBER:
            place = tuple(int(part) for part in rest[:depth])
            kinds[list_name][place] = _KIND_OF_MEMBER[rest[depth]]
    blocks = {}
    for list_name, members in kinds.items():
        their_list, sampler = _BLOCK_LISTS[list_name]
        level = resnets = 0
        for place in sorted(members):
            block = ".".join((list_name, *map(str, place)))
            owner = their_list if list_name == "middle_block" else f"{their_list}.{level}"
            match members[place]:
                case "resnets":
                    blocks[block] = f"{owner}.resnets.{resnets}"
                    resnets += 1
                case "attentions":
                    blocks[block] = f"{owner}.attentions.{resnets - 1}"
                case _:
                    blocks[block] = f"{owner}.{sampler}.0"
                    level, resnets = level + 1, 0
    return blocks


def _diffusers_block(module: str) -> str:
    return ".".join(module.split(".")[: 3 if module.startswith("mid_block.") else 4])


def _blocks_of_diffusers(blocks: set[str]) -> Iterator[tuple[str, str]]:
    """Walk the blocks in diffusers order and number them as ldm does."""
    yield from _numbered_levels(blocks, "down_blocks", "input_blocks", first=1)
    yield from _numbered_levels(blocks, "up_blocks", "output_blocks", first=0)
    place = 0
    for number in count():
        for block in (f"mid_block.resnets.{number}", f"mid_block.attentions.{number}"):
            if block in blocks:
                yield block, f"middle_block.{place}"
                place += 1
        if f"mid_block.resnets.{number}" not in blocks:
            return


def _numbered_levels(
    blocks: set[str], theirs: str, ours: str, first: int
) -> Iterator[tuple[str, str]]:
    place = first
    for level in count():
        owner = f"{theirs}.{level}"
        if f"{owner}.resnets.0" not in blocks:
            return
        for number in count():
            if f"{owner}.resnets.{number}" not in blocks:
                break
            yield f"{owner}.resnets.{number}", f"{ours}.{place}.0"
            slot = 1
            if f"{owner}.attentions.{number}" in blocks:
                yield f"{owner}.attentions.{number}", f"{ours}.{place}.1"
                slot = 2
            place += 1
        if f"{owner}.downsamplers.0" in blocks:
            yield f"{owner}.downsamplers.0", f"{ours}.{place}.0"
            place += 1
        if f"{owner}.upsamplers.0" in blocks:
            yield f"{owner}.upsamplers.0", f"{ours}.{place - 1}.{slot}"
