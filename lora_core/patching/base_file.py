"""Base weights read again from the checkpoint they were loaded from."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..files.safetensors_file import SafetensorsFile


@dataclass(frozen=True)
class CheckpointRows:
    """One tensor of a safetensors checkpoint as a ``BaseFile``.

    ``first_row`` is where the storage begins in a tensor that fuses several.
    """

    file: SafetensorsFile
    key: str
    first_row: int = 0

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the storage, on the CPU in the file's dtype.

        Raises:
            DamagedFileError: the file changed on disk.
        """
        return self.file.read_rows(self.key, self.first_row + start, self.first_row + stop)


def base_files(file: SafetensorsFile) -> Mapping[str, CheckpointRows]:
    """Every tensor of a checkpoint under its own name."""
    return {key: CheckpointRows(file, key) for key in file.tensors}
