"""Short training runs on ComfyUI's model, by the pack as ComfyUI loaded it."""

import copy
import importlib
from types import SimpleNamespace

import torch

from ..training.conftest import Folder

MODULES = {
    "config": "training.config",
    "run": "training.run",
    "task": "training.task",
    "scan": "training.dataset.scan",
    "settings": "training.dataset.settings",
    "injection": "training.injection",
    "targets": "training.targets",
    "dropout": "training.dropout",
    "trainable": "training.trainable",
    "comfy_trainable": "hosts.comfy.trainable",
    "host": "hosts.comfy.host",
    "export": "training.export",
    "stack": "lora_core.stack",
    "lora": "lora_core.lora",
    "errors": "lora_core.errors",
}


def training_modules(comfy):
    """The pack's modules by short names: ComfyUI's copy is another than ``import``'s."""
    return SimpleNamespace(
        **{
            short: importlib.import_module(f"{comfy.pack.__name__}.{path}")
            for short, path in MODULES.items()
        }
    )


def loaded_checkpoint(name):
    """MODEL, CLIP and VAE as the executor's loader gives them."""
    import nodes

    with torch.inference_mode():
        return nodes.CheckpointLoaderSimple().load_checkpoint(name)


def pictures(path, count=4, sizes=((64, 64), (96, 64))):
    """A folder of noise in two shapes, each with a caption."""
    folder = Folder(path)
    for number in range(count):
        size = sizes[number % len(sizes)]
        folder.add(f"{number:03d}.png", size=size, caption=f"a picture, number {number}")
    return path


class Listener:
    """A watcher that keeps what it hears, and may stop or raise after some steps."""

    def __init__(self, stop_after=None, raises=None, raise_after=None):
        self.losses, self.notes, self.pictures = [], [], []
        self._stop_after, self._raises, self._raise_after = stop_after, raises, raise_after

    def wish(self):
        return "keep" if self._stop_after == len(self.losses) else None

    def stepped(self, progress):
        self.losses.append(progress.loss)
        if self._raise_after == len(self.losses):
            raise self._raises

    def validated(self, step, loss):
        self.notes.append(f"validation {step}")

    def pictured(self, step, prompt, picture):
        self.pictures.append((step, prompt, picture))

    def noted(self, text):
        self.notes.append(text)


class Runs:
    """Trains on one loaded checkpoint as the node does: from inference mode, out of it."""

    def __init__(self, comfy, loaded, folder):
        from comfy import model_management

        self.pack = training_modules(comfy)
        self.model, self.clip, self.vae = loaded
        with torch.inference_mode():
            patchers = [self.model, self.clip.patcher]
            model_management.load_models_gpu(patchers, force_full_load=True)
        self.host = self.pack.host.ComfyHost()
        self.folder = folder
        self.dataset = self.scanned(pictures(folder / "pictures"))

    def scanned(self, folder):
        """The dataset of a folder."""
        settings = self.pack.settings.DatasetSettings
        return self.pack.scan.scan(settings(str(folder), resolution=64, bucket_step=8))

    def with_parts(self, **parts):
        """The same with another model, clip or vae."""
        other = copy.copy(self)
        vars(other).update(parts)
        return other

    def config(self, steps=3, adapter=None, optimizer=None, preview=None, objective=None, **run):
        made = self.pack.config
        return made.TrainConfig(
            adapter=made.AdapterConfig(**{"rank": 4, **(adapter or {})}),
            optimizer=made.OptimizerConfig(**{"rate": 1e-3, **(optimizer or {})}),
            objective=made.ObjectiveConfig(**(objective or {})),
            preview=made.PreviewConfig(**(preview or {})),
            run=made.RunConfig(**{"steps": steps, "batch_size": 1, **run}),
        )

    def trainable(self):
        with torch.inference_mode(False), torch.enable_grad():
            return self.pack.comfy_trainable.ComfyTrainable(
                self.host, self.model, self.clip, self.vae
            )

    def train(self, config=None, watcher=None, name="runs", output=None):
        """One run in ``name`` below the folder."""
        config, watcher = config or self.config(), watcher or Listener()
        output = output or self.pack.config.Output(name="dots", dtype="fp32")
        with torch.inference_mode(), torch.inference_mode(False), torch.enable_grad():
            runs, cache = self.folder / name, self.folder / "cache"
            task = self.pack.task.TrainingTask(
                self.trainable(), self.dataset, config, output, runs, cache
            )
            return self.pack.run.train(task, watcher)

    def stack_item(self, lora, strength):
        """A LoRA for the host's ``apply``."""
        return self.pack.stack.StackItem(lora, strength, strength)

    @property
    def parts(self):
        """The live modules."""
        return {"model": self.model.model, "clip": self.clip.cond_stage_model}


def state_of(parts):
    """All that a run must leave: tree, names, bits, flags, modes, attributes and forwards."""
    found = {}
    for part, root in parts.items():
        for name, module in root.named_modules():
            key = f"{part}.{name}"
            found[key] = (id(module), type(module), module.training, "forward" in vars(module))
            own = [name for name in vars(module) if not name.startswith("_lora_workbench")]
            found[f"{key} attributes"] = sorted(own)
            found[f"{key} children"] = list(module._modules)
            hooks = (module._forward_hooks, module._forward_pre_hooks)
            found[f"{key} hooks"] = tuple(map(len, hooks))
        for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
            data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).clone()
            found[f"{part}.{name} bits"] = data
            flags = (tensor.requires_grad, tensor.is_inference(), type(tensor))
            found[f"{part}.{name} flags"] = (tensor.dtype, tensor.shape, *flags)
    return found


def same_state(before, after):
    """Names of what differs."""
    return [
        name
        for name in before.keys() | after.keys()
        if name not in before
        or name not in after
        or not (
            torch.equal(before[name], after[name])
            if isinstance(before[name], torch.Tensor)
            else before[name] == after[name]
        )
    ]
