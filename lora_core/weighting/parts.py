"""Names for parts of a model: what a weight does, whichever block it is in."""

import re
from collections.abc import Mapping
from types import MappingProxyType

_ATTENTION = r"\.(?:\w+_)?attn\d?\.(?:\w+\.)*"

# Patterns over "." + canonical name. SD3.5's x_block.attn2 is a second *self*-attention.
_PATTERNS = {
    "attn": _ATTENTION,
    "attn1": r"\.(?:attn1|self_attn)\.|\.x_block\.attn2\.",
    "attn2": r"(?<!\.x_block)\.attn2\.|\.cross_attn\.",
    "q": _ATTENTION + r"(?:to_q|q_proj|add_q_proj|q)\.",
    "k": _ATTENTION + r"(?:to_k|k_proj|add_k_proj|k)\.",
    "v": _ATTENTION + r"(?:to_v|v_proj|add_v_proj|v)\.",
    "out": _ATTENTION + r"(?:to_out|out_proj|to_add_out|proj|o)\.",
    "ff": r"\.(?:ff|ff_context|ffn|feed_forward)\.|(?<!_embedder)\.(?:img_|txt_)?mlp\.",
    "proj": r"\.proj_(?:in|out)\.",
    "conv": r"^\.input_blocks\.0\.0\.|^\.out\.2\.|\.in_layers\.2\.|\.out_layers\.3\."
    r"|\.(?:skip_connection|op|conv)\.",
    "norm": r"\.\w*norm\d?\.|\.ln_\w+\.|\.(?:in|out)_layers\.0\.|^\.out\.0\.",
    "time": r"^\.(?:time_embed|label_emb|time_in|vector_in|guidance_in|[ty]_embedder)\."
    r"|\.emb_layers\.|\.(?:\w+_)?mod\.|\.(?:\w+_)?modulation\.",
}

PARTS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {name: re.compile(pattern) for name, pattern in _PATTERNS.items()}
)


def is_in_part(canonical: str, part: str) -> bool:
    """Tell whether a weight belongs to a part.

    Args:
        canonical: ldm name of a UNet weight, Hugging Face name of a text encoder's.
        part: A key of ``PARTS``.

    Returns:
        True when it does. A weight may be in several parts (``attn``, ``attn1`` and ``q``).
    """
    return PARTS[part].search("." + canonical) is not None
