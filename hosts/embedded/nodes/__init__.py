"""Core's node ids that a LoRA graph needs, on the embedded host."""

from ..host import EmbeddedHost
from .base import CoreNode
from .images import LoadImage, PreviewImage, SaveImage
from .latents import EmptyLatentImage, KSampler, VAEDecode, VAEEncode
from .loaders import CheckpointLoaderSimple, LoraLoader, LoraLoaderModelOnly
from .prompts import CLIPSetLastLayer, CLIPTextEncode

CORE_NODES: tuple[type[CoreNode], ...] = (
    CheckpointLoaderSimple,
    LoraLoader,
    LoraLoaderModelOnly,
    CLIPTextEncode,
    CLIPSetLastLayer,
    EmptyLatentImage,
    KSampler,
    VAEDecode,
    VAEEncode,
    LoadImage,
    SaveImage,
    PreviewImage,
)


def core_mappings(host: EmbeddedHost) -> tuple[dict[str, type[CoreNode]], dict[str, str]]:
    """Node id to class bound to ``host``, and node id to display name."""
    bound = {node.__name__: node.bound_to(host) for node in CORE_NODES}
    return bound, {name: node.DISPLAY_NAME for name, node in bound.items()}
