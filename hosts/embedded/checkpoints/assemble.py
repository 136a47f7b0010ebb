"""A module without memory, filled with the tensors of a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....lora_core.errors import LoraError, ShapeMismatchError
from ....lora_core.files.safetensors_file import SafetensorsFile
from ..parts import StoredRows

_POSITION_IDS = "position_ids"
_SHOWN = 5


@dataclass(frozen=True)
class Stored:
    """Where a parameter lies in a file.

    Attributes:
        file: The file.
        key: The tensor in it.
        shape: As the parameter has it: cut to ``rows`` and turned over when ``transposed``.
        rows: ``(start, stop)`` in dimension 0 of a tensor that fuses several, or None.
        transposed: The file holds the transpose.
    """

    file: SafetensorsFile
    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def read(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor in the parameter's shape, contiguous, in memory of its own."""
        found = self.file.read_rows(self.key, *self.rows) if self.rows else self.file.read(self.key)
        turned = found.T if self.transposed else found
        return turned.reshape(shape).to(device, dtype).contiguous()

    def place(self) -> StoredRows | None:
        """Where the parameter can be read again as it is; None when it is stored transposed."""
        first_row = self.rows[0] if self.rows else 0
        return None if self.transposed else StoredRows(self.file.path, self.key, first_row)


def meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module whose tensors have shapes and no memory."""
    with torch.device("meta"):
        return build()


def filled(
    module: nn.Module,
    sources: Mapping[str, Stored],
    spelled: Mapping[str, str],
    dtype: torch.dtype,
    device: torch.device,
) -> nn.Module:
    """Put a file's tensors into a module built by ``meta``.

    Args:
        module: Its parameters say which tensors are needed, and their shapes.
        sources: Parameter name to the tensor for it.
        spelled: Parameter name to its name in a file, for messages; may lack names.
        dtype: Of the parameters afterwards.
        device: Of the parameters afterwards.

    Returns:
        The same module in evaluation mode, without gradients.

    Raises:
        ShapeMismatchError: a tensor has another shape than its parameter.
        LoraError: parameters without a tensor, or tensors without a parameter.
    """
    parameters = dict(module.named_parameters())
    _require_all(parameters, sources, spelled)
    _require_shapes(parameters, sources)
    state = {
        name: sources[name].read(parameter.shape, dtype, device)
        for name, parameter in parameters.items()
    }
    module.load_state_dict(state, assign=True)
    _fill_buffers(module, device)
    return module.eval().requires_grad_(False)


def stored_files(module: nn.Module, sources: Mapping[str, Stored]) -> dict[str, StoredRows]:
    """Where each parameter can be read again; those stored transposed are left out."""
    places = {name: sources[name].place() for name, _ in module.named_parameters()}
    return {name: place for name, place in places.items() if place is not None}


def renamed(sources: Mapping[str, Stored], names: Mapping[str, str]) -> dict[str, Stored]:
    """The tensors under other names; those without another name keep theirs."""
    return {names.get(name, name): stored for name, stored in sources.items()}


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _require_all(
    parameters: Mapping[str, nn.Parameter],
    sources: Mapping[str, Stored],
    spelled: Mapping[str, str],
) -> None:
    missing = [spelled.get(name, name) for name in parameters if name not in sources]
    surplus = [stored.key for name, stored in sources.items() if name not in parameters]
    if missing:
        raise LoraError(
            "The checkpoint is not complete.",
            {"Missing": f"{len(missing)} tensors: {listed(missing)}"},
            "download it again, or get it from another source.",
        )
    if surplus:
        raise unknown_tensors(surplus)


def unknown_tensors(keys: list[str]) -> LoraError:
    """The error for tensors that belong to a component and have no place in it."""
    return LoraError(
        "The checkpoint has tensors that no part of the model takes.",
        {"Unknown": f"{len(keys)} tensors: {listed(keys)}"},
        "it is of a kind that this host does not know: run the graph in ComfyUI with --comfyui.",
    )


def _require_shapes(parameters: Mapping[str, nn.Parameter], sources: Mapping[str, Stored]) -> None:
    for name, parameter in parameters.items():
        wanted, found = tuple(parameter.shape), sources[name].shape
        # ldm keeps the projections of a VAE's attention as kernels of 1 x 1.
        if found != wanted and found != (*wanted, 1, 1):
            raise ShapeMismatchError(
                f"{sources[name].key}: the shape does not fit the rest of the checkpoint.",
                {"Expected": wanted, "Got": found},
                "the checkpoint is damaged or mixes two models; get an intact copy.",
            )


def _fill_buffers(module: nn.Module, device: torch.device) -> None:
    """Give the positions of a text encoder, which no file needs to hold, their values."""
    for owner_name, owner in module.named_modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if not buffer.is_meta:
                continue
            assert name == _POSITION_IDS, f"{owner_name}.{name} has no value"
            setattr(owner, name, torch.arange(buffer.shape[-1], device=device).expand((1, -1)))
