"""Whole runs: from a folder of pictures to a file, once."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lora_workbench.lora_core.binding import bind
from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.training.checks import check_settings
from lora_workbench.training.config import (
    AdapterConfig,
    CheckpointConfig,
    OptimizerConfig,
    Output,
    PreviewConfig,
    RunConfig,
    TargetRule,
    TrainConfig,
    ValidationConfig,
)
from lora_workbench.training.optimizer import OPTIMIZERS, READS
from lora_workbench.training.processes import Processes
from lora_workbench.training.randomness import seed_of
from lora_workbench.training.run import forget, train
from lora_workbench.training.task import TrainingTask

from .runs import Quiet, tiny_trainable

SHORT = TrainConfig(
    adapter=AdapterConfig(rank=2),
    run=RunConfig(steps=3, batch_size=2),
    checkpoint=CheckpointConfig(every=1),
)


def task_of(folder, dataset, config=SHORT, model=None, output=None):
    model, output = model or tiny_trainable(), output or Output(name="dots")
    return TrainingTask(model, dataset, config, output, folder / "runs", folder / "cache")


def trained(folder, dataset, config=SHORT, watcher=None, model=None, output=None):
    return train(task_of(folder, dataset, config, model, output), watcher or Quiet())


@pytest.fixture
def dataset(folder):
    return folder.fill(4).scan()


def test_a_folder_of_pictures_becomes_a_file_that_fits_the_base(dataset, tmp_path):
    model = tiny_trainable()
    outcome = trained(tmp_path, dataset, model=model)
    assert (outcome.steps, outcome.new_steps, outcome.is_complete) == (3, 3, True)
    lora = load_lora(outcome.path)
    binding = bind(lora, model.table)
    assert binding.unused == 0 if hasattr(binding, "unused") else binding.parts
    metadata = lora.file.metadata
    assert metadata["ss_output_name"] == "dots"
    assert metadata["ss_steps"] == "3"
    told = json.loads(metadata["lora_workbench_config"])
    assert told["training"]["adapter"]["rank"] == 2
    assert str(tmp_path) not in json.dumps(dict(metadata))


def test_a_finished_run_is_not_done_again(dataset, tmp_path):
    first = trained(tmp_path, dataset)
    watcher = Quiet()
    again = trained(tmp_path, dataset, watcher=watcher)
    assert watcher.progress == []
    assert (again.new_steps, again.steps, again.path) == (0, 3, first.path)
    assert again.history.losses == first.history.losses
    assert first.path.read_bytes() == again.path.read_bytes()


def test_a_lost_file_is_made_again_without_a_step(dataset, tmp_path):
    first = trained(tmp_path, dataset)
    content = first.path.read_bytes()
    first.path.unlink()
    again = trained(tmp_path, dataset)
    assert again.new_steps == 0
    assert again.path.read_bytes() == content


def test_a_stopped_run_gives_what_it_has_and_goes_on(dataset, tmp_path):
    stopped = trained(tmp_path, dataset, watcher=Quiet(stop_after=1))
    assert (stopped.steps, stopped.is_complete) == (1, False)
    assert load_lora(stopped.path).modules
    rest = trained(tmp_path, dataset)
    assert (rest.steps, rest.new_steps, rest.is_complete) == (3, 2, True)
    whole = trained(tmp_path / "whole", dataset)
    assert rest.path.read_bytes() == whole.path.read_bytes()


def test_another_picture_caption_seed_or_base_is_another_run(folder, tmp_path):
    keys = set()
    for change in (None, "caption", "picture", "seed", "base"):
        dataset = folder.fill(3).scan()
        config, model = SHORT, tiny_trainable()
        if change == "caption":
            folder.add("000.png", caption="another")
            dataset = folder.scan()
        if change == "picture":
            folder.add("new.png", caption="new")
            dataset = folder.scan()
        if change == "seed":
            config = TrainConfig(**{**vars(SHORT), "run": RunConfig(3, batch_size=2, seed=1)})
        if change == "base":
            with torch.no_grad():
                next(model.parts["unet"].parameters()).add_(1)
            model = type(model)(model._model, model._clip, model._vae)
        keys.add(task_of(tmp_path, dataset, config, model).key)
    assert len(keys) == 5


def test_the_file_holds_the_average_where_the_run_keeps_one(dataset, tmp_path):
    """The state keeps both: what moves, and diffusers' shadow of it."""
    files = []
    for ema in (0.0, 0.9):
        config = TrainConfig(**{**vars(SHORT), "run": RunConfig(3, batch_size=2, ema=ema)})
        outcome = trained(tmp_path / str(ema), dataset, config, output=Output(dtype="fp32"))
        files.append(load_file(outcome.path))
    (state,) = (tmp_path / "0.9").glob("runs/*/state-00000003*")
    kept = load_file(state)
    shadows = {value.numpy().tobytes() for name, value in kept.items() if "average." in name}
    plain, averaged = files
    factors = [name for name in averaged if not name.endswith(".alpha")]
    assert factors
    assert all(averaged[name].numpy().tobytes() in shadows for name in factors)
    assert not all(torch.equal(averaged[name], plain[name]) for name in factors)


@pytest.mark.parametrize("lost", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_peft_folder_that_lost_a_file_is_made_again(lost, dataset, tmp_path):
    """Without its config readers take alpha = rank."""
    config, output = replace(SHORT, adapter=AdapterConfig(rank=2, alpha=1)), Output(form="peft")
    first = trained(tmp_path, dataset, config, output=output)
    content = (first.path / lost).read_bytes()
    (first.path / lost).unlink()
    again = trained(tmp_path, dataset, config, output=output)
    assert (again.new_steps, (again.path / lost).read_bytes()) == (0, content)
    assert trained(tmp_path, dataset, config, Quiet(), output=output).new_steps == 0


@pytest.mark.parametrize(
    ("options", "rank", "alpha"),
    [
        ({"rank": 4, "alpha": 2}, 4, 2),
        ({"rank": 4, "alpha": 2, "rslora": True}, 4, 4),  # 2 / sqrt(4) is 4 / 4
        ({"rank": 2, "alpha": 2, "start": "pissa"}, 4, 4),
    ],
    ids=str,
)
def test_the_header_tells_rank_and_alpha_of_the_tensors(options, rank, alpha, dataset, tmp_path):
    config = replace(SHORT, adapter=AdapterConfig(**options))
    outcome = trained(tmp_path, dataset, config)
    header, tensors = outcome.lora.file.metadata, load_file(outcome.path)
    assert {v.shape[0] for k, v in tensors.items() if k.endswith("lora_down.weight")} == {rank}
    assert {float(v) for k, v in tensors.items() if k.endswith(".alpha")} == {alpha}
    told = [float(header[f"ss_network_{name}"]) for name in ("dim", "alpha")]
    assert told == [rank, alpha]


def test_a_run_that_cannot_be_forgotten_says_so_and_is_not_done(dataset, tmp_path, monkeypatch):
    trained(tmp_path, dataset)
    task = task_of(tmp_path, dataset)

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        with pytest.raises(LoraError, match="cannot be deleted"):
            forget(task)
    assert not (task.folder / "receipt.json").exists()
    forget(task)
    forget(task)  # there is nothing any more
    assert not task.folder.exists()


def test_more_processes_than_pictures_of_a_step_are_refused(dataset, tmp_path, monkeypatch):
    class Three(Processes):
        count = property(lambda self: 3, lambda self, value: None)

    monkeypatch.setattr("lora_workbench.training.run.Processes", Three)
    with pytest.raises(LoraError, match="no picture in any step"):
        trained(tmp_path, dataset)


def test_forgetting_begins_again(dataset, tmp_path):
    trained(tmp_path, dataset)
    forget(task_of(tmp_path, dataset))
    assert trained(tmp_path, dataset).new_steps == 3


def test_previews_are_pictures_with_the_lora_and_change_no_bit(dataset, tmp_path):
    preview = PreviewConfig(every=2, prompts=("a dot", "two dots"), steps=2, size=(64, 64))
    shown = TrainConfig(**{**vars(SHORT), "preview": preview})
    watcher = Quiet()
    with_previews = trained(tmp_path / "a", dataset, shown, watcher)
    without = trained(tmp_path / "b", dataset)
    assert [(step, prompt) for step, prompt, _ in watcher.pictures] == [
        (2, "a dot"),
        (2, "two dots"),
    ]
    assert all(picture.ndim == 3 and picture.shape[-1] == 3 for _, _, picture in watcher.pictures)
    assert with_previews.path.read_bytes() == without.path.read_bytes()


def test_the_options_that_would_do_nothing_are_refused(dataset, tmp_path):
    idle = {
        "validation.every": {"validation": ValidationConfig(every=1)},
        "preview.every": {"preview": PreviewConfig(every=1)},
        "validation.patience": {"validation": ValidationConfig(patience=2)},
        "run.epochs": {"run": RunConfig(steps=2, epochs=1)},
    }
    for name, change in idle.items():
        with pytest.raises(LoraError, match=f"{name} would do nothing"):
            trained(tmp_path, dataset, TrainConfig(**{**vars(SHORT), **change}))


def test_numbers_that_cannot_be_meant_are_refused(dataset, tmp_path):
    wrong = {
        "adapter.rank": {"adapter": AdapterConfig(rank=0)},
        "adapter.dropout": {"adapter": AdapterConfig(dropout=1.0)},
        "optimizer.rate": {"optimizer": OptimizerConfig(rate=math.inf)},
        "optimizer.betas": {"optimizer": OptimizerConfig(betas=(0.9, 1.0))},
        "optimizer.weight_decay": {"optimizer": OptimizerConfig(weight_decay=-0.1)},
        "optimizer.epsilon": {"optimizer": OptimizerConfig(epsilon=-1e-8)},
        "optimizer.power": {"optimizer": OptimizerConfig(schedule="polynomial", power=0.0)},
        "optimizer.text_encoder_rate": {"optimizer": OptimizerConfig(text_encoder_rate=0.0)},
        "run.steps": {"run": RunConfig(steps=-1)},
        "run.ema": {"run": RunConfig(ema=1.0)},
    }
    for name, change in wrong.items():
        with pytest.raises(LoraError, match=f"{name} cannot be"):
            trained(tmp_path, dataset, TrainConfig(**{**vars(SHORT), **change}))


@pytest.mark.parametrize("name", ["sampler", "scheduler"])
def test_names_that_the_host_does_not_know_are_refused(name, dataset, tmp_path):
    preview = PreviewConfig(every=1, prompts=("a",), **{name: "eulr"})
    with pytest.raises(LoraError, match=f"Unknown {name} 'eulr'"):
        trained(tmp_path, dataset, replace(SHORT, preview=preview))


@pytest.mark.parametrize("name", ["validation", "preview"])
def test_what_begins_after_the_end_is_refused(name, folder, tmp_path):
    dataset = folder.fill(4).scan(validation=0.25)
    part = {
        "validation": ValidationConfig(every=4),
        "preview": PreviewConfig(every=4, prompts=("a",)),
    }
    with pytest.raises(LoraError, match=f"{name}.every would do nothing"):
        trained(tmp_path, dataset, replace(SHORT, **{name: part[name]}))


def test_prodigy_has_one_rate():
    """Its step refuses others, after what was there is lost."""
    options = OptimizerConfig("prodigy", rate=1.0)
    unequal = {
        "optimizer.lora_plus": {"optimizer": replace(options, lora_plus=4.0)},
        "optimizer.text_encoder_rate": {"optimizer": replace(options, text_encoder_rate=0.5)},
        "adapter.rules.rate": {"adapter": AdapterConfig(rules=(TargetRule("attn", rate=0.1),))},
    }
    for name, change in unequal.items():
        with pytest.raises(LoraError, match=f"{name} cannot be"):
            check_settings(TrainConfig(**{"optimizer": options, **change}))


IDLE = {
    "optimizer.weight_decay": {"optimizer": OptimizerConfig("adam", weight_decay=0.1)},
    "optimizer.epsilon": {"optimizer": OptimizerConfig("lion", epsilon=1e-6)},
    "optimizer.betas": {"optimizer": OptimizerConfig("adafactor", betas=(0.9, 0.99))},
    "optimizer.betas[1]": {"optimizer": OptimizerConfig("sgd", betas=(0.8, 0.99))},
    "validation.timesteps": {"validation": ValidationConfig(timesteps=8)},
    "preview.prompts": {"preview": PreviewConfig(prompts=("a dot",))},
    "preview.negative": {"preview": PreviewConfig(negative="blurred")},
    "preview.steps": {"preview": PreviewConfig(steps=30)},
    "preview.cfg": {"preview": PreviewConfig(cfg=1.0)},
    "preview.sampler": {"preview": PreviewConfig(sampler="heun")},
    "preview.scheduler": {"preview": PreviewConfig(scheduler="karras")},
    "preview.size": {"preview": PreviewConfig(size=(64, 64))},
}


@pytest.mark.parametrize("name", IDLE)
def test_options_of_what_is_not_done_are_refused(name):
    with pytest.raises(LoraError) as error:
        check_settings(TrainConfig(**IDLE[name]))
    assert error.value.headline == f"{name} would do nothing."
    assert f"{name}: " in str(error.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_made_with_all_that_it_reads(name):
    """What the checks say that it reads is what its groups hold."""
    second = 0.999 if name == "sgd" else 0.75
    values = {"weight_decay": 0.25, "betas": (0.5, second), "epsilon": 1e-3}
    options = OptimizerConfig(name, **{k: v for k, v in values.items() if name in READS[k]})
    check_settings(TrainConfig(optimizer=options))
    try:
        groups = OPTIMIZERS[name]([{"params": [torch.zeros(2, requires_grad=True)]}], options)
    except LoraError as error:
        pytest.skip(error.headline)
    (group,) = groups.param_groups
    found = {
        "weight_decay": group.get("weight_decay") == 0.25,
        "betas": group.get("betas") == (0.5, second) or group.get("momentum") == 0.5,
        "epsilon": group.get("eps") == 1e-3,
    }
    assert found == {option: name in readers for option, readers in READS.items()}


KINDS = {
    "loha": AdapterConfig("loha", 2, dropout=0.1, text_encoder=("te1 & q",)),
    "lokr": AdapterConfig("lokr", 1, factor=2, text_encoder=("te1 & q",)),
    "oft": AdapterConfig("oft", 2, rescale=True, text_encoder=("te1 & q",)),
}


@pytest.mark.parametrize("method", KINDS)
def test_lycoris_kinds_go_from_pictures_to_a_file_with_previews(method, dataset, tmp_path):
    preview = PreviewConfig(every=2, prompts=("a dot",), steps=2, size=(64, 64))
    config = TrainConfig(KINDS[method], OptimizerConfig(rate=0.1), run=RunConfig(2, batch_size=2))
    shown, watcher = replace(config, preview=preview), Quiet()
    model = tiny_trainable()
    outcome = trained(tmp_path, dataset, shown, watcher, model)
    binding = bind(outcome.lora, model.table)
    assert binding.totals() == {"used": len(outcome.lora.file.tensors)}
    assert {module.kind for module in outcome.lora.modules.values()} == {method}
    header = outcome.lora.file.metadata
    assert header["ss_network_module"] == "lycoris.kohya"
    algo = json.loads(header["ss_network_args"])["algo"]
    assert algo == {"oft": "diag-oft"}.get(method, method)
    assert f"in {len(outcome.lora.modules)} modules are trained" in watcher.notes[0]
    ((_, _, picture),) = watcher.pictures
    base = model.preview("a dot", preview, (64, 64), seed_of(0, "preview", 0), None)
    with_it = model.preview("a dot", preview, (64, 64), seed_of(0, "preview", 0), outcome.lora)
    assert (picture - base).abs().mean() > 20 * (picture - with_it).abs().mean()  # fp16's rounding
    again = trained(tmp_path, dataset, config, model=model)
    assert again.new_steps == 0


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_a_form_without_names_is_refused_before_training(form, dataset, tmp_path):
    config, watcher = replace(SHORT, adapter=AdapterConfig("loha", 2)), Quiet()
    with pytest.raises(LoraError, match="has no names for what 'loha' trains"):
        trained(tmp_path, dataset, config, watcher, output=Output(form=form))
    assert watcher.progress == []


def test_another_name_or_dtype_is_another_file_of_the_same_run(dataset, tmp_path):
    trained(tmp_path, dataset)
    other = trained(tmp_path, dataset, output=Output(name="spots", dtype="fp32"))
    assert other.new_steps == 0
    assert other.lora.file.metadata["ss_output_name"] == "spots"


def test_a_preview_of_pissa_begins_with_the_base_s_picture(dataset, tmp_path):
    """What lies on the rest of the weights is the whole product, and not what it gained."""
    preview = PreviewConfig(every=1, prompts=("a dot",), steps=2, size=(64, 64))
    still = OptimizerConfig(rate=1e-5, weight_decay=0.0)
    pictures = []
    for start in ("zero", "pissa"):
        adapter = AdapterConfig(rank=2, targets=("attn",), start=start)
        config = TrainConfig(adapter=adapter, optimizer=still, run=RunConfig(1), preview=preview)
        watcher = Quiet()
        trained(tmp_path, dataset, config, watcher, output=Output(dtype="fp32"))
        pictures.append(watcher.pictures[0][2])
    torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=2e-3)


def test_what_the_model_predicts_is_part_of_the_run(dataset, tmp_path):
    models = (tiny_trainable(prediction=p) for p in ("epsilon", "v_prediction"))
    epsilon, velocity = (task_of(tmp_path, dataset, model=model).key for model in models)
    assert epsilon != velocity
