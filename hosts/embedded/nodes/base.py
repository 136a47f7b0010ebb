"""What core's nodes share on the embedded host."""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ..host import EmbeddedHost


class CoreNode:
    """A node id of ComfyUI's own, with its inputs and outputs."""

    host: ClassVar["EmbeddedHost"]
    DISPLAY_NAME: ClassVar[str]
    FUNCTION = "execute"

    @classmethod
    def bound_to(cls, host: "EmbeddedHost") -> "type[CoreNode]":
        """The same node class, asking ``host``."""
        return type(cls.__name__, (cls,), {"host": host, "__module__": cls.__module__})
