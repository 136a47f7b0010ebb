"""Importable names for torchvision and torchaudio, which ComfyUI imports but no graph here uses.

Install it only in a process that runs ComfyUI: beside it diffusers believes that torchvision is
there and fails to import.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

STUBBED = frozenset({"torchvision", "torchaudio"})


class StubModule(ModuleType):
    """A module whose every name can be imported and whose every call raises."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        full_name = f"{self.__name__}.{name}"

        def not_installed(*args, **kwargs):
            raise RuntimeError(f"{full_name} was called, but its package is not installed.")

        return not_installed


class StubFinder(MetaPathFinder, Loader):
    """Finds the stubbed packages and anything below them."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] not in STUBBED:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return StubModule(spec.name)

    def exec_module(self, module):
        """Nothing to run: the names appear on demand."""


def install():
    """Append the finder, last in line: an installed torchvision wins.

    transformers, which PEFT needs, is asked before: it remembers that torchvision is not there.
    """
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()
    import_utils.is_torchvision_v2_available()
    sys.meta_path.append(StubFinder())
