"""``lora-workbench train`` as a user meets it, on the demo's base and drawn pictures."""

import errno
import importlib.util
import json
import re
import shutil
import signal
from pathlib import Path
from typing import get_args

import pytest
import tomllib
import torch

from lora_workbench.headless import progress, train_run
from lora_workbench.headless.cli import main
from lora_workbench.headless.demo_model.pictures import draw_scene, random_scenes
from lora_workbench.headless.demo_model.write import write_demo_checkpoint
from lora_workbench.headless.train_keys import all_keys, example_config
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.training import export, state
from lora_workbench.training.config import Schedule
from lora_workbench.training.config_file import parse_toml, read_config
from lora_workbench.training.file_config import FileConfig
from lora_workbench.training.optimizer import OPTIMIZERS

CONFIG = """\
[model]
checkpoint = "base/checkpoints/demo.safetensors"
[dataset]
folder = "pictures"
resolution = 64
bucket_step = 32
[adapter]
rank = 2
targets = ["attn2"]
[optimizer]
rate = 1e-3
[run]
steps = 4
batch_size = 2
[checkpoint]
every = 2
"""


@pytest.fixture(autouse=True)
def _one_thread():
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_demo_checkpoint(tmp_path_factory.mktemp("base"))


class User:
    """A folder with a configuration, a base and pictures, and a command line."""

    def __init__(self, folder, base, capsys):
        self.folder, self._capsys = folder, capsys
        (folder / "base" / "checkpoints").mkdir(parents=True)
        (folder / "base" / "checkpoints" / base.name).symlink_to(base)
        pictures = folder / "pictures"
        pictures.mkdir()
        for number, scene in enumerate(random_scenes(5, 1)):
            draw_scene(scene).resize((64, 64)).save(pictures / f"{number}.png")
            (pictures / f"{number}.txt").write_text(scene.caption)

    def train(self, *arguments, changes=()):
        """Exit code, standard output and standard error; ``changes`` are of the configuration."""
        text = CONFIG
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (self.folder / "run.toml").write_text(text)
        return self.call(str(self.folder / "run.toml"), "--runs", str(self.runs), *arguments)

    def call(self, *arguments):
        self._capsys.readouterr()
        code = main(["train", *arguments])
        return (code, *self._capsys.readouterr())

    @property
    def runs(self):
        return self.folder / "runs"

    def states(self):
        return sorted(path.name for path in self.runs.glob("*/state-*"))


@pytest.fixture
def user(tmp_path, base, capsys):
    return User(tmp_path, base, capsys)


def test_the_example_is_valid_with_its_two_required_keys_and_as_a_whole():
    told = read_config(FileConfig, parse_toml(example_config(), "example"))
    assert (told.model.checkpoint, told.dataset.folder) == ("", "")
    defaults = read_config(FileConfig, {"model": {"checkpoint": ""}, "dataset": {"folder": ""}})
    assert told == defaults
    active = re.sub(r"^# (\w+ = .+|\[\[.*)$", r"\1", example_config(), flags=re.M)
    whole = read_config(FileConfig, tomllib.loads(active))
    assert (whole.adapter.rules[0].select, whole.preview.size) == ("attn2", (512, 512))


@pytest.mark.parametrize("skip", [2, 0, -50])
def test_a_layer_that_the_text_encoder_lacks_is_refused(user, skip):
    """Kohya's 2 is our -2."""
    changes = [("[dataset]", f"clip_skip = {skip}\n[dataset]")]
    code, _, err = user.train(changes=changes)
    assert (code, f"There is no layer {skip} of the text encoders" in err) == (2, True), err
    assert ("model.clip_skip = -2" in err) == (skip == 2)
    assert user.states() == []


def test_the_header_tells_the_layer_as_kohya_counts(user):
    output = user.folder / "dots.safetensors"
    changes = [("[dataset]", "clip_skip = -2\n[dataset]"), ("steps = 4", "steps = 1")]
    code, _, err = user.train("-o", str(output), changes=changes)
    assert code == 0, err
    assert load_lora(output).metadata["ss_clip_skip"] == "2"
    assert "ss_clip_skip" not in load_lora(plain_run(user, output)).metadata


def plain_run(user, output):
    code, _, err = user.train("-o", str(output), "--force", changes=[("steps = 4", "steps = 1")])
    assert code == 0, err
    return output


def test_an_output_that_cannot_be_is_refused_before_the_run(user):
    folder = user.folder / "folder.safetensors"
    folder.mkdir()
    (user.folder / "file").touch()
    peft = [("[checkpoint]", '[output]\nform = "peft"\n[checkpoint]')]
    for path, changes, told in (
        (folder, [], "would be a file"),
        (user.folder / "file", peft, "would be a folder"),
        (user.folder / "new.safetensors", peft, "use 'new'"),
        (Path("/proc/dots.safetensors"), [], "cannot be written"),
    ):
        code, _, err = user.train("-o", str(path), "--force", changes=changes)
        assert (code, told in err) == (2, True), err
    assert user.states() == []


def test_every_choice_is_told():
    texts = {f"{key.table}.{key.name}": key.text for key in all_keys()}
    assert all(f'"{name}"' in texts["optimizer.name"] for name in OPTIMIZERS)
    assert all(f'"{name}"' in texts["optimizer.schedule"] for name in get_args(Schedule))
    assert '"bf16"' in texts["model.dtype"]
    assert not any("None" in text for text in texts.values())


def test_every_key_is_told(user):
    code, out, _ = user.call("--keys")
    assert code == 0
    for key in all_keys():
        assert f"{key.table}.{key.name} " in out
        assert key.text


def test_the_users_page_has_the_table_of_all_keys():
    from lora_workbench.headless.train_keys import markdown_table

    page = Path(__file__).parents[2] / "docs" / "training.md"
    assert markdown_table() in page.read_text(encoding="utf-8")


def test_a_lora_is_trained_written_and_not_trained_twice(user):
    output = user.folder / "dots.safetensors"
    code, out, err = user.train("-o", str(output))
    assert code == 0
    assert "4 steps, 4 of them now" in out
    assert "numbers in 64 modules are trained" in err
    content = output.read_bytes()
    assert len(load_lora(output).modules) == 64
    code, out, err = user.train("-o", str(output))
    assert (code, out) == (2, "")
    assert "add --force" in err
    code, out, _ = user.train("-o", str(output), "--force", "--json")
    told = json.loads(out)
    assert (code, told["steps"], told["new_steps"], told["is_complete"]) == (0, 4, 0, True)
    assert output.read_bytes() == content
    code, out, _ = user.train("--retrain", "--json")
    told = json.loads(out)
    assert told["new_steps"] == 4
    assert Path(told["file"]).read_bytes() == content


def test_without_a_terminal_there_are_lines_of_progress(user, monkeypatch):
    assert "step 4 of 4" not in user.train()[2]
    monkeypatch.setattr(progress, "_APART", 0.0)
    err = user.train("--retrain")[2]
    assert re.search(r"^step 4 of 4: loss \d\.\d{4}, rate ", err, re.M)


def test_a_finished_run_says_that_it_draws_no_previews(user):
    user.train()
    err = user.train()[2]
    assert "no previews" not in err
    asked = 'every = 2\n[preview]\nprompts = ["a dot"]\nevery = 2\nsteps = 1'
    code, _, err = user.train(changes=[("every = 2", asked)])
    assert code == 0
    assert "no previews are drawn. --retrain draws them." in err
    assert "no previews" not in user.train("--retrain", changes=[("every = 2", asked)])[2]


def test_a_check_says_the_cost_and_leaves_no_run(user):
    code, out, _ = user.train("--check")
    assert code == 0
    assert "5 pictures" in out
    assert re.search(r"time: about .* for 4 steps", out)
    code, out, err = user.train("--check", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert (facts["is_checked"], facts["pictures"], facts["steps"]) == (True, 5, 4)
    names = ("trained_parameters", "file_bytes", "activation_bytes", "seconds")
    assert all(facts[name] > 0 for name in names)
    assert [path.name for path in user.runs.iterdir()] == ["cache"]


class _Interrupted(train_run.CommandWatcher):
    """Ctrl-C is pressed after step 1, ``times`` times."""

    times = 1

    def stepped(self, progress):
        super().stepped(progress)
        if progress.step == 1:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_keeps_what_was_learnt_and_the_same_command_goes_on(user, monkeypatch, times):
    output = user.folder / "dots.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(_Interrupted, "times", times)
        patch.setattr(train_run, "CommandWatcher", _Interrupted)
        code, out, err = user.train("-o", str(output))
    assert code == 1
    assert user.states() == ["state-00000001.safetensors"]
    assert not output.exists()
    assert "stopping after this step" in err
    stopped = user.folder / "dots-step-00000001.safetensors"
    if times == 1:
        assert "stopped; the same command goes on: 1 steps" in out
        assert load_lora(stopped).modules
    else:
        assert "The last state is kept" in err
        assert not stopped.exists()
    code, out, _ = user.train("-o", str(output))
    assert code == 0
    assert "4 steps, 3 of them now" in out
    with monkeypatch.context() as patch:
        patch.setattr(_Interrupted, "times", times)
        patch.setattr(train_run, "CommandWatcher", _Interrupted)
        _, out, err = user.train("--retrain")
    assert "the same command without --retrain goes on" in out + err
    user.train("--retrain", "-o", str(user.folder / "whole.safetensors"))
    assert output.read_bytes() == (user.folder / "whole.safetensors").read_bytes()


WRONG = {
    "steps = 4": ("step = 4", "Fix: use 'run.steps'"),
    "rate = 1e-3  ": ("[objective]\nzzzz = 1", "Fix: use one of the known names"),
    "[run]": ("[runs]", "Fix: use 'run'"),
    "steps = 4 ": ("steps = '4'", "Expected: a whole number"),
    "[run] ": ("[run", "mend the line"),
    'folder = "pictures"': ("", "dataset.folder is not given"),
    '"pictures"': ('"picture"', "does not exist"),
    "demo.safetensors": ("dmo.safetensors", "use 'demo.safetensors'"),
    "base/checkpoints/demo.safetensors": ("", "model.checkpoint: empty"),
    "checkpoints/demo.safetensors": ("demo.safetensors", "model.checkpoint: "),
    'folder = "pictures" ': ('folder = ""', "dataset.folder: empty"),
    '"pictures" ': ('"pictures/no"', "dataset.folder: "),
    "resolution = 64": ("resolution = 63", "dataset.resolution: 63"),
    "resolution = 64 ": (
        'resolution = 64\nvalidation_folder = "base"',
        "dataset.validation_folder: ",
    ),
    "resolution = 64  ": (
        'resolution = 64\nmasks = "folder"\nmask_folder = "no"',
        "dataset.mask_folder: ",
    ),
    '["attn2"]': ('["atn2"]', "Unknown selector 'atn2'"),
    "rate = 1e-3": ('name = "adamww"', "use 'adamw'"),
    "batch_size = 2": ("batch_size = 9", "larger than the dataset"),
    "steps = 4  ": ("steps = 0", "run.epochs cannot be 0"),
    "every = 2": ('every = 2\n[output]\ndtype = "fp8"', "Known: bf16, fp16, fp32"),
    "every = 2 ": ('every = 2\n[preview]\nsampler = "eulr"', "use 'euler'"),
    "every = 2  ": ("every = 2\n[preview]\nsize = [65, 64]", "multiples of 8"),
    "rank = 2": ('rank = 2\nmethod = "oft"\nalpha = 2.0', "adapter.alpha would do nothing"),
    "rate = 1e-3 ": (
        'name = "adam"\nweight_decay = 0.1',
        "optimizer.weight_decay would do nothing",
    ),
    "every = 2   ": ("every = 2\n[preview]\nsteps = 9", "preview.steps would do nothing"),
    "[model]": ("rank = 4\n[model]", "Did you mean: adapter.rank"),
    "[dataset]": ('device = "abacus"\n[dataset]', "The device 'abacus' cannot be used"),
}


@pytest.mark.parametrize("old", WRONG)
def test_what_cannot_be_used_is_told_before_anything_is_trained(user, old):
    new, message = WRONG[old]
    code, out, err = user.train(changes=[(old.rstrip(), new)])
    assert (code, out) == (2, "")
    assert message in err
    assert "Fix: " in err
    assert user.states() == []


def test_a_missing_configuration_or_output_folder_is_told(user):
    assert "name a TOML file" in user.call(str(user.folder / "no.toml"))[2]
    assert "--example" in user.call()[2]
    assert "make it first" in user.train("-o", str(user.folder / "no" / "a.safetensors"))[2]
    assert "use 'a.safetensors'" in user.train("-o", str(user.folder / "a.ckpt"))[2]


def test_missing_libraries_are_named_with_one_pip_line(user, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else find(name)
    )
    code, _, err = user.train()
    assert code == 2
    assert "Missing: peft" in err
    assert 'pip install "comfyui-lora-workbench[train]"' in err


def test_a_missing_extra_is_named_before_a_model_is_loaded(user, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lycoris" else find(name)
    )
    monkeypatch.setattr(train_run, "load_checkpoint", lambda *_: pytest.fail("loaded"))
    code, out, err = user.train(changes=[("rank = 2", 'method = "lokr"')])
    assert (code, out) == (2, "")
    assert "pip install 'comfyui-lora-workbench[lycoris]'" in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate = 1e-3", 'schedule = "cosine"\nwarmup_steps = 4', "still be rising"),
        ("batch_size = 2", "batch_size = 9", "larger than the dataset"),
    ],
)
def test_what_the_pictures_decide_is_told_before_a_model_is_loaded(
    user, monkeypatch, old, new, message
):
    monkeypatch.setattr(train_run, "load_checkpoint", lambda *_: pytest.fail("loaded"))
    code, _, err = user.train(changes=[(old, new)])
    assert code == 2
    assert message in err


@pytest.mark.parametrize("method", ["loha", "lokr", "oft"])
def test_lycoris_kinds_leave_one_json_document_on_standard_output(user, method):
    """LyCORIS logs there how it splits sides."""
    code, out, _ = user.train("--json", changes=[("rank = 2", f'method = "{method}"\nrank = 4')])
    assert code == 0
    told = json.loads(out)
    assert told["modules"] == 64
    assert {module.kind for module in load_lora(Path(told["file"])).modules.values()} == {method}
    assert "diffusers (0.42) refuses such files" in told["warnings"][0]


def test_pictures_and_captions_that_cannot_be_read(user):
    pictures = user.folder / "pictures"
    (pictures / "0.txt").write_bytes("caf\xe9".encode("latin-1"))
    code, _, err = user.train()
    assert code == 2
    assert "0.txt" in err
    assert "save them as UTF-8" in err
    (pictures / "0.txt").write_text("a dot")
    (pictures / "0.png").write_bytes((pictures / "0.png").read_bytes()[:40])
    code, _, err = user.train()
    assert code == 0
    assert "unreadable picture: 1 (left out; replace or delete the file)" in err
    for path in pictures.iterdir():
        path.unlink()
    code, _, err = user.train()
    assert code == 2
    assert "holds no picture" in err


def test_pictures_of_any_size_are_fitted_and_told(user):
    draw_scene(random_scenes(1, 2)[0]).resize((8, 8)).save(user.folder / "pictures" / "small.png")
    draw_scene(random_scenes(1, 3)[0]).resize((300, 40)).save(user.folder / "pictures" / "long.png")
    code, out, _ = user.train("--check")
    assert code == 0
    assert "small.png: 8 x to 64x64" in out
    assert "long.png" in out


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_its_states(user):
    code, out, err = user.train(
        changes=[("rate = 1e-3", "rate = 1e30\nclip_norm = 0"), ("every = 2", "every = 1")]
    )
    assert (code, out) == (1, "")
    assert "The loss is no number at step 2" in err
    assert "Last good state: state-00000001.safetensors" in err
    assert user.states() == ["state-00000001.safetensors"]


def _full(write, chosen):
    def refuse(path, *arguments, **named):
        if chosen(Path(path)):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *arguments, **named)

    return refuse


def test_a_full_disk_while_saving_a_state_keeps_those_before(user, monkeypatch):
    with monkeypatch.context() as patch:
        refuse = _full(state.write_safetensors, lambda path: "00000004" in path.name)
        patch.setattr(state, "write_safetensors", refuse)
        code, out, err = user.train()
    assert (code, out) == (1, "")
    assert "The state of step 4 cannot be written" in err
    assert "Cause: No space left on device" in err
    assert "Fix: make room" in err
    assert user.states() == ["state-00000002.safetensors"]
    assert "4 steps, 2 of them now" in user.train()[1]


def test_a_full_disk_while_exporting_loses_no_step(user, monkeypatch):
    with monkeypatch.context() as patch:
        refuse = _full(export.write.write_safetensors, lambda path: True)
        patch.setattr(export.write, "write_safetensors", refuse)
        code, _, err = user.train()
    assert code == 1
    assert "The LoRA cannot be written" in err
    assert "no step is done anew" in err
    assert list(user.runs.glob("*/lora*")) == []
    assert "4 steps, 0 of them now" in user.train()[1]


def test_a_damaged_last_state_is_named_and_the_one_before_it_is_used(user, monkeypatch):
    whole = user.folder / "whole.safetensors"
    user.train("-o", str(whole))
    (run,) = (path for path in user.runs.iterdir() if path.name != "cache")
    for name in ("receipt.json", "lora.safetensors"):
        (run / name).unlink()
    last = run / "state-00000004.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    code, out, err = user.train("-o", str(user.folder / "again.safetensors"))
    assert code == 0
    assert "state-00000004.safetensors is damaged" in err
    assert "4 steps, 2 of them now" in out
    assert (user.folder / "again.safetensors").read_bytes() == whole.read_bytes()
    for name in ("receipt.json", "lora.safetensors"):
        (run / name).unlink()
    for path in run.glob("state-*"):
        path.write_bytes(path.read_bytes()[:200])
    code, _, err = user.train()
    assert code == 2
    assert "Every state of this run is damaged" in err


@pytest.mark.slow
def test_the_demo_trains_a_lora_that_moves_pictures_to_its_style(tmp_path, capsys):
    assert main(["demo", "--train", "--grid", str(tmp_path / "grid.png")]) == 0
    told = re.search(r"style: ([\d.]+) without the file, ([\d.]+) with", capsys.readouterr().out)
    without, with_it = map(float, told.groups())
    assert with_it < 0.75 * without
    assert (tmp_path / "grid.png").is_file()


def test_peft_s_form_is_a_folder(user):
    changes = [("every = 2", 'every = 2\n[output]\nform = "peft"')]
    output = user.folder / "adapter"
    code, *_ = user.train("-o", str(output), changes=changes)
    assert code == 0
    assert len(load_lora(output).modules) == 64
    (output / "adapter_config.json").write_text("old")
    assert "0 of them now" in user.train("-o", str(output), "--force", changes=changes)[1]
    assert len(load_lora(output).modules) == 64
    assert sorted(path.name for path in user.folder.iterdir()) == sorted(
        ["adapter", "base", "pictures", "run.toml", "runs"]
    )
    (output / "notes.txt").touch()
    code, _, err = user.train("-o", str(output), "--force", changes=changes)
    assert code == 2
    assert "Other files: notes.txt" in err
    assert len(list(output.iterdir())) == 3
    shutil.rmtree(output)
