"""A LoRA file understood: its modules, their kinds and scales; no factor is read yet."""

import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .adapters import Adapter, DiffAdapter, DoraAdapter, LoraAdapter
from .adapters.dora import magnitude_axis
from .errors import DamagedFileError, LoraError
from .files.memory_file import MemoryFile
from .files.tensor_file import TensorFile, open_tensor_file
from .formats.peft_config import PeftConfig, parse_header_configs, parse_peft_config
from .formats.suffixes import Role, split_key

CONTROL_LORA = "Control-LoRA: a ControlNet in LoRA form"
NUMBERED = "cloneofsimo file: its keys are numbers in traversal order, not module names"
_CONTROL_LORA_KEY = "lora_controlnet"
_EITHER_AXIS = ".dora_scale"
"""The one name of magnitudes whose writers know both axes."""
_PEFT_CONFIG = "adapter_config.json"
_FOLDER_FILES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)
_PEFT_PREFIXES = ("base_model.model.", "unet.", "transformer.", "text_encoder.", "text_encoder_2.")


@dataclass(frozen=True, slots=True)
class Part:
    """The tensors of one module that change one parameter.

    Attributes:
        of: ``"weight"`` or ``"bias"``.
        kind: ``"lora"``, ``"dora"``, ``"diff"``, ``"norm"`` or ``"lora-bias"``.
        keys: Role to tensor name.
        axis: Of a DoRA, the channels its magnitudes belong to: 0 outputs, 1 inputs; else None.
    """

    of: str
    kind: str
    keys: Mapping[str, str]
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class LoraModule:
    """All tensors of a file that share a module key.

    Attributes:
        lora_key: Name in the file without the suffix.
        kind: Adapter kind shown to the user; ``"lora"``, ``"dora"``, ``"diff"``, ``"norm"``, or
            one that is recognised but not supported.
        keys: Role to tensor name, every tensor of the module.
        parts: What can be applied; empty when ``problem`` says why not.
        rank: Rows of ``down``, None for kinds without factors.
        alpha: Stored or configured alpha in the unit of rank, None when there is none.
        problem: Why the module cannot be applied, or None.
        notes: Facts a user may be surprised by.
    """

    lora_key: str
    kind: str
    keys: Mapping[str, str]
    parts: tuple[Part, ...] = ()
    rank: int | None = None
    alpha: float | None = None
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def scale(self) -> float | None:
        """``alpha / rank``, 1 when there is no alpha or alpha is 0; None without factors."""
        if self.rank is None:
            return None
        return self.alpha / self.rank if self.alpha else 1.0


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
        if "down" in tensors:
            low = LoraAdapter(tensors["down"], tensors["up"], tensors.get("mid"), module.alpha)
            return low if part.axis is None else DoraAdapter(low, tensors["magnitude"], part.axis)
        (tensor,) = tensors.values()
        return DiffAdapter(tensor, (module.scale or 1.0) if "up_bias" in part.keys else 1.0)

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
        module_key: _module(
            module_key, roles, file, alphas, _config_for(module_key, configs), clashes
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


def _module(
    lora_key: str,
    roles: Mapping[Role, str],
    file: TensorFile,
    alphas: Mapping[str, float],
    config: PeftConfig | None,
    clashes: Mapping[str, str],
) -> LoraModule:
    keys = {role.name: key for role, key in roles.items()}
    kind = _kind(roles)
    problem = clashes.get(lora_key) or _problem(kind, keys) or _factor_problem(keys, file)
    if problem is None and config is not None and kind in ("lora", "dora"):
        problem = config.unsupported
    if problem is not None:
        return LoraModule(lora_key, kind, keys, problem=problem)
    rank = file.tensors[keys["down"]].shape[0] if "down" in keys else None
    alpha = alphas[keys["alpha"]] if "alpha" in keys else None
    if alpha is None and rank is not None and config is not None:
        alpha = config.alpha_of(_without_prefix(lora_key), rank)
    axis = _magnitude_axis(keys, file) if kind == "dora" else None
    notes = tuple(_notes(keys, file, alpha, axis))
    return LoraModule(lora_key, kind, keys, _parts(keys, axis), rank, alpha, None, notes)


def _notes(
    keys: Mapping[str, str], file: TensorFile, alpha: float | None, axis: int | None
) -> Iterator[str]:
    if alpha == 0:
        yield "alpha is 0: read as alpha = rank, as kohya does"
    if axis == 0:
        yield "DoRA by output channel: ComfyUI's own loader takes another norm than was trained"
        name = keys["magnitude"]
        is_flat = name.endswith(_EITHER_AXIS) and len(file.tensors[name].shape) == 1
        if is_flat and file.tensors[keys["down"]].shape[1] == file.tensors[keys["up"]].shape[0]:
            yield "flat DoRA magnitudes of square weights are read as of output channels"


def _without_prefix(lora_key: str) -> str:
    for prefix in _PEFT_PREFIXES:
        lora_key = lora_key.removeprefix(prefix)
    return lora_key


def _kind(roles: Iterable[Role]) -> str:
    """The most specific kind among the roles; a LoRA with magnitudes is a DoRA."""
    names, kinds = {role.name for role in roles}, {role.kind for role in roles} - {"shared"}
    exotic = sorted(kinds - {"lora", "diff", "norm"})
    if exotic:
        return exotic[0]
    if "magnitude" in names and kinds:
        return "dora"
    return next((kind for kind in ("lora", "diff", "norm") if kind in kinds), "unknown")


def _problem(kind: str, keys: Mapping[str, str]) -> str | None:
    if kind == "unknown":
        return "no factors stand beside " + ", ".join(keys.values())
    if kind == "set":
        return "set_weight, which replaces a whole weight, is not supported yet"
    if kind not in ("lora", "dora", "diff", "norm"):
        return f"{kind} modules are not supported yet"
    if "scale_override" in keys:
        return "a .scale tensor that replaces alpha / rank is not supported yet"
    missing = {"down", "up"} - set(keys)
    if kind in ("lora", "dora") and missing:
        return f"the {' and '.join(sorted(missing))} factor is missing"
    return None


def _factor_problem(keys: Mapping[str, str], file: TensorFile) -> str | None:
    """Why the tensors of one module are no factors or do not fit each other, or None."""
    for role, key in keys.items():
        dtype = file.tensors[key].dtype
        if role not in ("alpha", "reshape_weight") and not dtype.is_floating_point:
            return f"the {role} tensor holds {dtype} numbers"
    if "down" not in keys:
        return None
    down, up = file.tensors[keys["down"]].shape, file.tensors[keys["up"]].shape
    if len(down) < 2 or len(up) < 2 or 0 in down or 0 in up:
        return f"the factors are not matrices: down {list(down)}, up {list(up)}"
    if down[0] != up[1]:
        return f"'down' and 'up' disagree on the rank: down {list(down)}, up {list(up)}"
    if any(size != 1 for size in up[2:]):
        return f"an up factor with a kernel is not known from any writer: up {list(up)}"
    if "mid" in keys:
        mid = file.tensors[keys["mid"]].shape
        if mid[:2] != (down[0], down[0]) or any(size != 1 for size in down[2:]):
            return f"the Tucker core does not fit: down {list(down)}, mid {list(mid)}"
    if "magnitude" in keys and _magnitude_axis(keys, file) is None:
        magnitude = list(file.tensors[keys["magnitude"]].shape)
        return (
            f"the DoRA magnitudes {magnitude} are neither one per output nor one per input: "
            f"down {list(down)}, up {list(up)}"
        )
    return None


def _magnitude_axis(keys: Mapping[str, str], file: TensorFile) -> int | None:
    """Which channels the magnitudes of a module belong to; see ``magnitude_axis``."""
    name = keys["magnitude"]
    outputs, inputs = file.tensors[keys["up"]].shape[0], file.tensors[keys["down"]].shape[1]
    shape = file.tensors[name].shape
    return magnitude_axis(shape, outputs, inputs, name.endswith(_EITHER_AXIS))


_PARTS = {
    "down": ("weight", "lora"),
    "up": ("weight", "lora"),
    "mid": ("weight", "lora"),
    "up_bias": ("bias", "lora-bias"),
    "diff": ("weight", "diff"),
    "diff_b": ("bias", "diff"),
    "w_norm": ("weight", "norm"),
    "b_norm": ("bias", "norm"),
}


def _parts(keys: Mapping[str, str], axis: int | None) -> tuple[Part, ...]:
    """The parts of a module, in the order of their first tensor; a DoRA's factors with ``axis``."""
    grouped: dict[tuple[str, str], dict[str, str]] = {}
    for role, key in keys.items():
        place = _PARTS.get(role)
        if place is not None:
            grouped.setdefault(place, {})[role] = key
    return tuple(
        Part(of, "dora", {**roles, "magnitude": keys["magnitude"]}, axis)
        if kind == "lora" and axis is not None
        else Part(of, kind, roles)
        for (of, kind), roles in grouped.items()
    )
