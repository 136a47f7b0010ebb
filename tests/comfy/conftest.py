"""A real ComfyUI inside the pytest process: one per process, a fresh executor per test.

ComfyUI is importable only once the ``comfy`` fixture has run: import its modules inside tests.
"""

import asyncio
import copy
import importlib
import inspect
import logging
import os
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors

from . import torchvision_stub
from .checkpoints import FULL, SLIM, Recipe, cached_checkpoint
from .comfy_source import REPOSITORY, ComfyUnavailableError, cache_dir, comfyui_path
from .flow_checkpoint import write_sd3
from .server_fixture import ComfyServer, make_comfyui_folder, running_server
from .training_runs import loaded_checkpoint

PACK = "ComfyUI-LoRA-Workbench"
FOLDERS = ("custom_nodes", "input", "models/checkpoints", "models/loras", "output", "temp", "user")


def pytest_collection_modifyitems(items):
    """Let ComfyUI warn, and keep it out of a process that runs other tests."""
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.filterwarnings("ignore"))
        if len(ours) < len(items):
            item.add_marker(
                pytest.mark.skip(reason="ComfyUI needs its own process: pytest tests/comfy")
            )


class PromptRejectedError(Exception):
    """ComfyUI refused a graph: ``error`` and ``node_errors`` as POST /prompt answers them."""

    def __init__(self, error: Mapping | None, node_errors: Mapping):
        super().__init__(f"{error}\n{node_errors}")
        self.error, self.node_errors = error, node_errors


class NodeFailedError(Exception):
    """A node raised: what ComfyUI sends as ``execution_error``."""

    def __init__(self, event: Mapping):
        self.node_id: str = event["node_id"]
        self.node_type: str = event["node_type"]
        self.exception_type: str = event["exception_type"]
        self.message: str = event["exception_message"]
        traceback = "".join(event["traceback"])
        super().__init__(f"node {self.node_id} ({self.node_type}): {self.message}\n{traceback}")


@dataclass(frozen=True)
class RunResult:
    """What one run left behind."""

    outputs: Mapping[str, Mapping]  # node id -> what it shows in the UI, as in /history
    executed: tuple[str, ...]  # node ids in order, without those that came from the cache
    pictures: tuple[Path, ...]  # every saved picture; the bytes depend on the pixels alone


class EventLog:
    """What PromptExecutor needs of a server: a place that its events go to."""

    def __init__(self):
        self.client_id = self.last_node_id = self.last_prompt_id = None
        self.sockets_metadata = {}
        self.events = []

    def send_sync(self, event, data, sid=None):
        self.events.append((event, data))

    def queue_updated(self):
        """Nobody watches the queue."""


class Executor:
    """ComfyUI's PromptExecutor with the classic cache, which outlives a run as on a server."""

    def __init__(self, output_dir: Path):
        from execution import CacheType, PromptExecutor

        self._output_dir = output_dir
        self._server = EventLog()
        options = {"cache_type": CacheType.CLASSIC}
        # ComfyUI: 0.30 fails without cache_args, 0.3.64 does not know it.
        if "cache_args" in inspect.signature(PromptExecutor).parameters:
            options["cache_args"] = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        self._executor = PromptExecutor(self._server, **options)

    def run(self, prompt: Mapping) -> RunResult:
        """Run a graph in API form.

        Raises:
            PromptRejectedError: validation found an error, in any output.
            NodeFailedError: a node raised.
        """
        from execution import validate_prompt

        prompt = copy.deepcopy(prompt)  # ComfyUI writes into it
        prompt_id = uuid.uuid4().hex
        valid, error, outputs, node_errors = asyncio.run(validate_prompt(prompt_id, prompt, None))
        if not valid or node_errors:
            raise PromptRejectedError(error, node_errors)
        self._server.events.clear()
        self._executor.execute(prompt, prompt_id, {"client_id": "tests"}, outputs)
        for event, data in self._executor.status_messages:
            if event == "execution_error":
                raise NodeFailedError(data)
        return self._result()

    def _result(self) -> RunResult:
        outputs = self._executor.history_result["outputs"]
        executed = [data["node"] for event, data in self._server.events if event == "executing"]
        pictures = [
            self._output_dir / image["subfolder"] / image["filename"]
            for shown in outputs.values()
            for image in shown.get("images", ())
            if image["type"] == "output"
        ]
        return RunResult(outputs, tuple(node for node in executed if node), tuple(pictures))


@dataclass(frozen=True)
class ComfyHost:
    """The running ComfyUI and its folders."""

    version: str
    root: Path
    base_directory: Path
    pack: ModuleType  # our pack as ComfyUI loaded it: another copy than ``import lora_workbench``

    @property
    def loras_dir(self) -> Path:
        return self.base_directory / "models" / "loras"

    @property
    def checkpoints_dir(self) -> Path:
        return self.base_directory / "models" / "checkpoints"

    @property
    def output_dir(self) -> Path:
        return self.base_directory / "output"

    def new_executor(self) -> Executor:
        """Return an executor with an empty cache."""
        return Executor(self.output_dir)

    def run(self, prompt: Mapping) -> RunResult:
        """Run a graph once with nothing cached; see ``Executor.run``."""
        return self.new_executor().run(prompt)

    def pack_nodes(self) -> tuple[str, ...]:
        """Return the ids of the nodes that ComfyUI registered from our pack."""
        import nodes

        return tuple(
            node_id
            for node_id, node in nodes.NODE_CLASS_MAPPINGS.items()
            if getattr(node, "RELATIVE_PYTHON_MODULE", "") == f"custom_nodes.{PACK}"
        )

    def object_info(self, node_class: str) -> dict:
        """Return the inputs and outputs of a node, under the names of GET /object_info."""
        import nodes

        node = nodes.NODE_CLASS_MAPPINGS[node_class]
        if hasattr(node, "GET_NODE_INFO_V1"):
            return node.GET_NODE_INFO_V1()
        inputs = node.INPUT_TYPES()
        return {
            "name": node_class,
            "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(node_class, node_class),
            "input": inputs,
            "input_order": {kind: list(names) for kind, names in inputs.items()},
            "output": node.RETURN_TYPES,
            "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES),
            "output_node": getattr(node, "OUTPUT_NODE", False),
            "category": getattr(node, "CATEGORY", ""),
            "description": getattr(node, "DESCRIPTION", ""),
        }


def find_comfyui() -> Path:
    """Return ComfyUI's root; without a network fail in CI and skip elsewhere."""
    try:
        return comfyui_path()
    except ComfyUnavailableError as error:
        message = f"ComfyUI is missing: {error}\nFix: allow the download, or set COMFYUI_PATH."
        if os.environ.get("LORA_WORKBENCH_CI") or os.environ.get("CI"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)


def start_comfyui(root: Path, base_directory: Path):
    """Make ComfyUI importable, on the CPU, with all its folders below ``base_directory``."""
    arguments = [
        "--cpu",
        "--base-directory",
        str(base_directory),
        "--disable-api-nodes",
        "--disable-metadata",
    ]
    torchvision_stub.install()
    sys.path.insert(0, str(root))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main.py", *arguments])
        import comfy.options

        comfy.options.enable_args_parsing()
        import execution  # noqa: F401  (reads sys.argv, and imports nodes and the rest)


def make_base_directory(base_directory: Path) -> Path:
    """Create ComfyUI's folders, and our pack as a link in ``custom_nodes``; return the link."""
    for folder in FOLDERS:
        (base_directory / folder).mkdir(parents=True)
    link = base_directory / "custom_nodes" / PACK
    link.symlink_to(REPOSITORY, target_is_directory=True)
    return link


class Warnings(logging.Handler):
    """Keeps the text of warnings."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record):
        self.text += record.getMessage() + "\n"


def load_pack(folder: Path) -> ModuleType:
    """Load a pack as ComfyUI does at its start, but fail where ComfyUI only logs."""
    import nodes

    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    asyncio.run(nodes.load_custom_node(str(folder)))
    logging.getLogger().removeHandler(warnings)
    if "Cannot import" in warnings.text or "Error while calling" in warnings.text:
        pytest.fail(f"ComfyUI cannot load {folder.name}.\n{warnings.text}", pytrace=False)
    return sys.modules[str(folder).replace(".", "_x_")]


@pytest.fixture(scope="session")
def comfy(tmp_path_factory) -> ComfyHost:
    root = find_comfyui()
    base_directory = tmp_path_factory.mktemp("comfyui")
    link = make_base_directory(base_directory)
    start_comfyui(root, base_directory)
    from comfyui_version import __version__

    return ComfyHost(__version__, root, base_directory, load_pack(link))


@pytest.fixture(autouse=True)
def new_enough(request):
    """Skip what an older ComfyUI cannot do."""
    mark = request.node.get_closest_marker("comfyui")
    if mark is None:
        return
    since, why = mark.args
    text = (find_comfyui() / "comfyui_version.py").read_text()
    version = re.search(r'"(\d[\d.]*)', text)[1]
    if tuple(map(int, version.split("."))) < tuple(map(int, since.split("."))):
        pytest.skip(f"ComfyUI {version}: {why}")


@pytest.fixture
def executor(comfy) -> Executor:
    """An executor whose cache lasts for one test."""
    return comfy.new_executor()


@pytest.fixture(autouse=True)
def unload_models(request):
    """Leave no model loaded or patched for the next test."""
    yield
    if "comfy" in request.fixturenames:
        from comfy import model_management

        model_management.unload_all_models()


@pytest.fixture
def adapter_calls(comfy, monkeypatch) -> list[str]:
    """The weight key of each patch that ComfyUI evaluates, whichever class the adapter has."""
    from comfy import lora

    calls, calculate_weight = [], lora.calculate_weight

    def counted(patches, weight, key, *args, **kwargs):
        calls.extend(key for _ in patches)
        return calculate_weight(patches, weight, key, *args, **kwargs)

    monkeypatch.setattr(lora, "calculate_weight", counted)
    # Our class merges a plain weight in one pass of its own.
    repatch = importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.repatch")
    merge_in_one_pass = repatch.DifferentialRepatch._merge_in_one_pass

    def counted_too(self, key, *args):
        calls.append(key)
        return merge_in_one_pass(self, key, *args)

    monkeypatch.setattr(repatch.DifferentialRepatch, "_merge_in_one_pass", counted_too)
    return calls


@pytest.fixture(scope="session")
def slim_checkpoint(comfy) -> str:
    """Name of a checkpoint with a one-level UNet (180 MB), for generated LoRAs."""
    return offer_checkpoint(comfy, SLIM)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order, and no waiting for busy cores."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


@pytest.fixture(scope="session")
def sd3_checkpoint(comfy, slim_checkpoint) -> str:
    """Name of a small SD3 checkpoint with the slim one's CLIP-L, a flow model."""
    name = "small-sd3.safetensors"
    write_sd3(comfy.checkpoints_dir / name, comfy.checkpoints_dir / slim_checkpoint)
    return name


@pytest.fixture(scope="module")
def sd3(comfy, sd3_checkpoint):
    """MODEL, CLIP and VAE of the small SD3."""
    return loaded_checkpoint(sd3_checkpoint)


@pytest.fixture(scope="session")
def half_checkpoint(comfy, slim_checkpoint) -> str:
    """The slim checkpoint with its text encoder in fp16: ComfyUI merges LoRAs into fp8 as fp8."""
    file = open_safetensors((comfy.checkpoints_dir / slim_checkpoint).resolve())
    tensors = file.read_many(file.tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float8_e4m3fn:
            tensors[name] = tensor.half()
    name = "slim-half.safetensors"
    write_safetensors(comfy.checkpoints_dir / name, tensors, file.metadata)
    return name


@pytest.fixture(scope="session")
def full_checkpoint(comfy) -> str:
    """Name of a checkpoint with every weight of SD1.5 (2 GB on disk), for published LoRAs."""
    return offer_checkpoint(comfy, FULL)


@pytest.fixture(scope="session")
def comfyui_folder(comfy, tmp_path_factory) -> Path:
    """A folder as users have it: its main.py starts ComfyUI."""
    return make_comfyui_folder(tmp_path_factory.mktemp("install") / "ComfyUI", comfy.root)


@pytest.fixture(scope="session")
def server_base(comfy, slim_checkpoint, tmp_path_factory) -> Path:
    """Folders for ComfyUI in its own process, with the slim checkpoint and our pack in them."""
    base_directory = tmp_path_factory.mktemp("server")
    make_base_directory(base_directory)
    live_pack = Path(__file__).parents[1] / "live_pack.py"
    (base_directory / "custom_nodes" / live_pack.name).symlink_to(live_pack)
    target = (comfy.checkpoints_dir / slim_checkpoint).resolve()
    (base_directory / "models" / "checkpoints" / slim_checkpoint).symlink_to(target)
    return base_directory


@pytest.fixture(scope="session")
def server(comfyui_folder, server_base) -> Iterator[ComfyServer]:
    """A ComfyUI in its own process, one for all tests; it knows the slim checkpoint."""
    with running_server(comfyui_folder, server_base) as running:
        yield running


def offer_checkpoint(comfy: ComfyHost, recipe: Recipe) -> str:
    """Put the recipe's checkpoint into ComfyUI's list and return its name there."""
    path = cached_checkpoint(cache_dir(), recipe)
    (comfy.checkpoints_dir / path.name).symlink_to(path)
    return path.name


def text_to_image(
    checkpoint: str,
    *,
    model: tuple[str, int] = ("checkpoint", 0),
    clip: tuple[str, int] = ("checkpoint", 1),
    seed: int = 7,
    steps: int = 1,
    extra: Mapping[str, Mapping] | None = None,
) -> dict:
    """Return a text-to-image graph of 64 x 64 pixels in API form.

    Args:
        checkpoint: name in ComfyUI's list.
        model: the output that samples, ``(node id, slot)``; one of ``extra``, or the checkpoint's.
        clip: the output that encodes the text.
        seed: of the sampler.
        steps: of the sampler.
        extra: more nodes, such as LoRA loaders: ``{id: node(class_type, ...)}``.
    """
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        **(extra or {}),
        "positive": node("CLIPTextEncode", text="a lighthouse at dusk", clip=list(clip)),
        "negative": node("CLIPTextEncode", text="", clip=list(clip)),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler",
            seed=seed,
            steps=steps,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
            model=list(model),
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="test"),
    }


def same_values(tensor, other) -> bool:
    """Whether all values are equal; NaN equals NaN.

    ComfyUI: SD1.5 files have no text projection, and its memory is not initialised.
    """
    return bool(((tensor == other) | (tensor.isnan() & other.isnan())).all())


def node(class_type: str, **inputs) -> dict:
    """Return one node of a graph in API form."""
    return {"class_type": class_type, "inputs": inputs}
