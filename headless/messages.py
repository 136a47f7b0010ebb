"""What people read on standard error."""

import sys

from ..lora_core.errors import LoraError
from ..lora_core.explain import printable


def write_error(error: LoraError) -> None:
    """Write an error's headline, facts and fix."""
    lines = map(printable, str(error).splitlines())
    sys.stderr.write("\n".join(lines) + "\n")
