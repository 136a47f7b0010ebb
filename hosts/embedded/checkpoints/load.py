"""One entrance for every form a checkpoint comes in."""

from pathlib import Path

import torch

from ....lora_core.errors import UnsupportedFormatError
from ....lora_core.files.tensor_file import require_file
from ..parts import Checkpoint
from .folder import load_folder
from .single_file import load_single_file


def load_checkpoint(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Load Stable Diffusion 1, 2 or XL, of any width, from a file or a folder in diffusers' form.

    Args:
        path: A safetensors file in ldm or SGM names, or a folder with ``model_index.json``.
        dtype: The weights are cast to it as they are read.
        device: Where the weights go.

    Returns:
        Modules in evaluation mode without gradients. ``text`` and ``vae`` are None where the
        checkpoint has none.

    Raises:
        UnsupportedFormatError: not safetensors, quantised, or a model that only ComfyUI runs.
        DamagedFileError: a file breaks its format.
        ShapeMismatchError: a tensor's shape does not fit the others.
        LoraError: nothing is there, tensors are missing, or some have no place in the model.

    Memory: the weights in ``dtype`` and one more tensor.
    """
    path = Path(path)
    if path.is_dir():
        return load_folder(path, dtype, torch.device(device))
    require_file(path)
    if path.suffix.lower() != ".safetensors":
        raise UnsupportedFormatError(
            f"{path.name}: checkpoints are read from .safetensors files only.",
            {"file": path, "its ending": path.suffix or "none"},
            "get the checkpoint as .safetensors, or convert it with a tool you trust.",
        )
    return load_single_file(path, dtype, torch.device(device))
