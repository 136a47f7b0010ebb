"""A LoRA file understood: its modules, their kinds and scales; no factor is read yet."""

import json
import math
from collections.abc import Hashable, Mapping
from functools import cached_property
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .adapters import Adapter, DiffAdapter
from .errors import DamagedFileError, LoraError
from .factors import adapter_of
from .files.memory_file import MemoryFile
from .files.tensor_file import TensorFile, open_tensor_file
from .formats.peft_config import PeftConfig, parse_header_configs, parse_peft_config
from .formats.suffixes import Role, split_key
from .modules import LoraModule, Part, module_of

CONTROL_LORA = "Control-LoRA: a ControlNet in LoRA form"
NUMBERED = "cloneofsimo file: its keys are numbers in traversal order, not module names"
_CONTROL_LORA_KEY = "lora_controlnet"
_PEFT_CONFIG = "adapter_config.json"
_FOLDER_FILES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)


class Lora:
    """One LoRA: modules by key, the tensors nobody could name, and the file behind them.

    Make one with ``load_lora`` or ``lora_from_tensors``. ``file_key`` tells two files apart
    without reading them.
    """

    def __init__(
        self,
        name: str,
        file: TensorFile,
        modules: Mapping[str, LoraModule],
        unknown_keys: tuple[str, ...],
        formats: tuple[str, ...],
        problem: str | None = None,
        file_key: Hashable = None,
    ) -> None:
        self.name = name
        self.file = file
        self.modules = modules
        self.unknown_keys = unknown_keys
        self.formats = formats
        self.problem = problem
        self.file_key = file_key
        self._in_use: WeakValueDictionary[str, Tensor] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"Lora({self.name!r}, {len(self.modules)} modules)"

    def __deepcopy__(self, memo: dict[int, object]) -> "Lora":
        """Itself: nothing in it changes."""
        return self

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's string pairs (``ss_*``, ``modelspec.*``, ...)."""
        return self.file.metadata

    @cached_property
    def sha256(self) -> str:
        """Hash of the file's bytes; read once, on first use."""
        return self.file.sha256()

    def shape(self, tensor_key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self.file.tensors[tensor_key].shape

    def adapter(self, module: LoraModule, part: Part) -> Adapter:
        """Read the factors of one part, or share those that somebody still holds.

        Raises:
            LoraError: a tensor holds NaN or infinity.
            DamagedFileError: the file changed or shrank since it was opened.
        """
        held = {role: self._in_use.get(key) for role, key in part.keys.items()}
        tensors = {role: tensor for role, tensor in held.items() if tensor is not None}
        if len(tensors) < len(held):
            tensors = self._read(part)
        if "up_bias" in tensors:
            return DiffAdapter(tensors["up_bias"], module.scale or 1.0)
        return adapter_of(tensors, part.axis, module.alpha, module.rank)

    def _read(self, part: Part) -> dict[str, Tensor]:
        """The tensors of a part by role, from the file."""
        data = self.file.read_many(part.keys.values())
        tensors = {role: data[key] for role, key in part.keys.items()}
        for role, tensor in tensors.items():
            if not all_finite(tensor):
                raise LoraError(
                    f"{self.name}: {part.keys[role]} holds NaN or infinity.",
                    {"Shape": tuple(tensor.shape), "Dtype": tensor.dtype},
                    "the training run that wrote this file broke; use another copy or checkpoint.",
                )
        self._in_use.update(data)
        return tensors


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; integer tensors are.

    One such value makes a sum so; ``isfinite`` alone takes a CPU ten times as long.
    """
    if not tensor.is_floating_point():
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    if math.isfinite(wide.sum(dtype=torch.float32)):
        return True
    return bool(torch.isfinite(wide).all())  # a sum of finite values may overflow


def load_lora(path: str | Path, name: str | None = None) -> Lora:
    """Read names, shapes and alphas of a LoRA file or PEFT folder.

    Args:
        path: A ``.safetensors``, ``.pt`` or ``.bin`` file, or a folder with a PEFT or diffusers
            file in it; an ``adapter_config.json`` beside ``adapter_model.*`` gives its alphas.
        name: Shown in reports; the file's name by default.

    Raises:
        DamagedFileError: the file breaks its format.
        UnsupportedFormatError: the file's type is not one of these.
    """
    location = _file_of(Path(path))
    file = open_tensor_file(location)
    config = location.with_name(_PEFT_CONFIG)
    configs = parse_header_configs(file.metadata, str(location.name))
    if location.stem == "adapter_model" and config.is_file():
        configs[""] = parse_peft_config(_read_config(config), str(config))
    stat = location.stat()
    file_key = (str(location.resolve()), stat.st_size, stat.st_mtime_ns)
    return _parse(name or Path(path).name, file, configs, file_key)


def lora_from_tensors(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Lora:
    """A LoRA from tensors in memory, read by the same rules as a file; named ``<memory>/NAME``."""
    file = MemoryFile(name, tensors, metadata)
    configs = parse_header_configs(file.metadata, name)
    # By content: the address of a freed LoRA may be given to the next one. Metadata can set alphas.
    file_key = ("<memory>", file.sha256(), tuple(sorted(file.metadata.items())))
    return _parse(f"<memory>/{name}", file, configs, file_key)


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise LoraError(
        f"No LoRA file in the folder {path.name}.",
        {"Expected": ", ".join(_FOLDER_FILES), "Folder": path},
        "give the file itself, or a folder saved by PEFT or diffusers.",
    )


def _read_config(path: Path) -> dict[str, object]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"{path.name} cannot be read.",
            {"Cause": error, "Path": path},
            "restore the adapter_config.json that was saved with the file.",
        ) from error
    if not isinstance(fields, dict):
        raise DamagedFileError(
            f"{path.name} is not a JSON object.",
            {"Path": path},
            "restore the adapter_config.json that was saved with the file.",
        )
    return fields


def _parse(
    name: str, file: TensorFile, configs: Mapping[str, PeftConfig], file_key: Hashable
) -> Lora:
    grouped: dict[str, dict[Role, str]] = {}
    unknown: list[str] = []
    clashes: dict[str, str] = {}
    formats: dict[str, None] = {}
    for key in file.tensors:
        found = split_key(key)
        if found is None:
            unknown.append(key)
            continue
        module_key, role = found
        roles = grouped.setdefault(module_key, {})
        twin = next((other for other in roles if other[:2] == role[:2]), None)
        if twin is not None:
            clashes[module_key] = f"two tensors for the role {role.name}: {roles[twin]} and {key}"
            unknown.append(key)
            continue
        roles[role] = key
        if role.format:
            formats[role.format] = None
    _join_strays(grouped)
    alphas = _read_alphas(name, file, grouped)
    modules = {
        module_key: module_of(
            module_key,
            roles,
            file,
            alphas,
            _config_for(module_key, configs),
            clashes.get(module_key),
        )
        for module_key, roles in grouped.items()
    }
    problem = _whole_problem(file, grouped)
    return Lora(name, file, modules, tuple(unknown), tuple(formats), problem, file_key)


def _join_strays(grouped: dict[str, dict[Role, str]]) -> None:
    """Bring shared tensors whose module is spelled otherwise to the factors they belong to.

    Seen: ``..._attn1.to_k.lora_magnitude_vector`` beside ``..._attn1_to_k.lora_down.weight``
    (diffusers' kohya converter), ``..._to_q_.alpha`` beside ``..._to_q.lora_down.weight``.
    """
    alone = {key for key, roles in grouped.items() if all(r.kind == "shared" for r in roles)}
    if not alone:
        return
    owners = {_spelling(key): key for key in grouped if key not in alone}
    for key in alone:
        owner = grouped.get(owners.get(_spelling(key), ""))
        names = {role.name for role in owner or ()}
        if owner is not None and not any(role.name in names for role in grouped[key]):
            owner.update(grouped.pop(key))


def _spelling(module_key: str) -> str:
    return module_key.replace(".", "_").rstrip("_")


def _whole_problem(file: TensorFile, grouped: Mapping[str, Mapping[Role, str]]) -> str | None:
    if _CONTROL_LORA_KEY in file.tensors:
        return CONTROL_LORA
    kinds = {role.kind for roles in grouped.values() for role in roles}
    return NUMBERED if "nameless" in kinds else None


def _read_alphas(
    name: str, file: TensorFile, grouped: Mapping[str, Mapping[Role, str]]
) -> dict[str, float]:
    keys = [key for roles in grouped.values() for role, key in roles.items() if role[1] == "alpha"]
    for key in keys:
        if math.prod(file.tensors[key].shape) != 1:
            raise _bad_alpha(name, key, f"shape {tuple(file.tensors[key].shape)}")
    alphas = file.read_numbers(keys)
    for key, value in alphas.items():
        if not math.isfinite(value):
            raise _bad_alpha(name, key, value)
    return alphas


def _bad_alpha(name: str, key: str, got: object) -> DamagedFileError:
    return DamagedFileError(
        f"{name}: {key} is not one finite number.",
        {"Got": got},
        "load an intact copy of the file.",
    )


def _config_for(module_key: str, configs: Mapping[str, PeftConfig]) -> PeftConfig | None:
    prefix = module_key.partition(".")[0]
    return configs.get(prefix) or configs.get("")
