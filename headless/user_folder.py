"""Where this command keeps small things between runs."""

import os
from pathlib import Path


def user_folder() -> Path:
    """``$LORA_WORKBENCH_HOME``, or ``lora-workbench`` in the user's cache folder."""
    chosen = os.environ.get("LORA_WORKBENCH_HOME")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora-workbench"
