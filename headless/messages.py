"""What people read on standard error."""

import sys

from ..lora_core.errors import LoraError
from ..lora_core.explain import printable


def write_error(error: LoraError) -> None:
    """Write an error's headline, facts and fix."""
    write_text(str(error))


def write_text(text: str) -> None:
    """Write lines; control characters in them are shown as escapes."""
    sys.stderr.write("\n".join(map(printable, text.splitlines())) + "\n")
