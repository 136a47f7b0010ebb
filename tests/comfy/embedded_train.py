"""A training run on the embedded host in a process of its own, told as ``recorded`` tells it.

    python embedded_train.py MODELS CHECKPOINT PICTURES FOLDER SETTINGS

Writes FOLDER/record.safetensors and prints the path of the trained file.
"""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

MODULES = {
    "run": "training.run",
    "task": "training.task",
    "config": "training.config",
    "scan": "training.dataset.scan",
    "settings": "training.dataset.settings",
    "texts": "training.settings_text",
    "injection": "training.injection",
    "targets": "training.targets",
    "dropout": "training.dropout",
    "objective": "training.objective",
    "feed": "training.picture_feed",
    "embedded": "hosts.embedded.host",
    "folders": "hosts.embedded.folders",
}


class Losses:
    """A watcher that keeps the losses."""

    def __init__(self):
        self.losses = []

    def wish(self):
        return None

    def stepped(self, progress):
        self.losses.append(progress.loss)

    def validated(self, step, loss):
        """Nothing is measured here."""

    def pictured(self, step, prompt, picture):
        """There are no previews."""

    def noted(self, text):
        """Costs differ between hosts."""


def recorded(package, trainable, pictures, folder, overrides):
    """Train; first factors, batches, timesteps and noise by name, the losses, and the outcome.

    Args:
        package: Name of the pack, whose modules the trainable is of.
        trainable: Gives the model; called again for the run.
        pictures: A folder.
        folder: Of the run.
        overrides: Of the preset "quick look".
    """
    names = {name: path for name, path in MODULES.items() if not path.startswith("hosts")}
    pack = SimpleNamespace(
        **{name: importlib.import_module(f"{package}.{path}") for name, path in names.items()}
    )
    config = pack.texts.settings_of("quick look", overrides)
    settings = pack.settings.DatasetSettings(str(pictures), resolution=64, bucket_step=8)
    dataset, output = pack.scan.scan(settings), pack.config.Output(name="dots", dtype="fp32")
    model, found = trainable(), {}
    targets = pack.targets.choose_targets(model.parts, model.weights, config.adapter)
    seed, draws = config.run.seed, pack.dropout.Draws(config.run.seed)
    with (
        model.loaded(),
        pack.injection.injected(model.parts, targets, config.adapter, seed, draws) as factors,
    ):
        for each in factors:
            for role, parameter in each.parameters.items():
                name = f"factor {each.trained.target.canonical} {role}"
                found[name] = parameter.detach().clone().contiguous()
    encodes = not config.adapter.text_encoder
    feed = pack.feed.PictureFeed(
        model, dataset, config.run.batch_size, seed, Path(folder) / "cache", encodes
    )
    for number in range(config.run.steps):
        picks = feed.picks(number)
        told = json.dumps([(pick.sample.path.name, pick.crop, pick.flip) for pick in picks])
        found[f"picks {number}"] = torch.frombuffer(bytearray(told.encode()), dtype=torch.uint8)
        for place in range(len(picks)):
            key = (number, place)
            time = pack.objective.drawn_timestep(model.levels, config.objective, seed, *key)
            noise = pack.objective.drawn_noise((4, 8, 8), config.objective, seed, *key)
            found |= {f"time {key}": time, f"noise {key}": noise}
    watcher = Losses()
    runs, cache = Path(folder) / "runs", Path(folder) / "cache"
    task = pack.task.TrainingTask(model, dataset, config, output, runs, cache)
    outcome = pack.run.train(task, watcher)
    found["losses"] = torch.tensor(watcher.losses, dtype=torch.float64)
    return found, outcome


def main():
    models, checkpoint, pictures, folder, overrides = sys.argv[1:]
    from lora_workbench.hosts.embedded.folders import Folders
    from lora_workbench.hosts.embedded.host import EmbeddedHost

    torch.set_num_threads(1)
    output = Path(folder)
    folders = Folders(Path(models), output / "in", output, output / "temp", output / "user")
    host = EmbeddedHost(folders)
    loaded = host.load_checkpoint(checkpoint)
    found, outcome = recorded(
        "lora_workbench", lambda: host.trainable(*loaded), pictures, folder, overrides
    )
    save_file(found, output / "record.safetensors")
    print(outcome.path)


if __name__ == "__main__":
    main()
