"""The node classes, in menu order, and how a host takes them."""

from .add import LoraWorkbenchAdd
from .apply import LoraWorkbenchApply
from .base import Node
from .dataset import LoraWorkbenchDataset
from .hooks import LoraWorkbenchHooks
from .inspect import LoraWorkbenchInspect
from .load import LoraWorkbenchLoad
from .merge import LoraWorkbenchMerge
from .prompt import LoraWorkbenchPrompt
from .save_model import LoraWorkbenchSaveModel
from .stack import LoraWorkbenchStack
from .train import LoraWorkbenchTrain
from .train_settings import LoraWorkbenchTrainSettings
from .unmerge import LoraWorkbenchUnmerge
from .weight import LoraWorkbenchWeight

NODES: tuple[type[Node], ...] = (
    LoraWorkbenchApply,
    LoraWorkbenchLoad,
    LoraWorkbenchStack,
    LoraWorkbenchAdd,
    LoraWorkbenchPrompt,
    LoraWorkbenchWeight,
    LoraWorkbenchMerge,
    LoraWorkbenchUnmerge,
    LoraWorkbenchSaveModel,
    LoraWorkbenchInspect,
    LoraWorkbenchHooks,
    LoraWorkbenchDataset,
    LoraWorkbenchTrainSettings,
    LoraWorkbenchTrain,
)


def node_mappings(host: object) -> tuple[dict[str, type[Node]], dict[str, str]]:
    """Node id to class bound to ``host``, and node id to display name."""
    bound = {node.__name__: node.bound_to(host) for node in NODES}
    return bound, {name: node.DISPLAY_NAME for name, node in bound.items()}
