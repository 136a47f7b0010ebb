"""The node classes, in menu order, and how a host takes them."""

from .apply import LoraWorkbenchApply
from .base import Node
from .inspect import LoraWorkbenchInspect
from .load import LoraWorkbenchLoad
from .stack import LoraWorkbenchStack

NODES: tuple[type[Node], ...] = (
    LoraWorkbenchApply,
    LoraWorkbenchLoad,
    LoraWorkbenchStack,
    LoraWorkbenchInspect,
)


def node_mappings(host: object) -> tuple[dict[str, type[Node]], dict[str, str]]:
    """Node id to class bound to ``host``, and node id to display name."""
    bound = {node.__name__: node.bound_to(host) for node in NODES}
    return bound, {name: node.DISPLAY_NAME for name, node in bound.items()}
