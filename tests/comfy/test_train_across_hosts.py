"""The same run on both hosts: same start, same order, same noise, the same losses."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .embedded_train import recorded
from .training_runs import Runs, loaded_checkpoint, pictures

pytestmark = pytest.mark.comfyui("0.30", "the trainer is written for 0.30")

SHORT = 'optimizer.warmup_steps = 0\noptimizer.schedule = "constant"\nrun.steps = 3'
SETTINGS = {
    "unet": 'run.steps = 20\nadapter.targets = ["attn", "conv"]\nrun.batch_size = 2',
    "text": 'run.steps = 20\nadapter.text_encoder = ["te"]\nadapter.dropout = 0.1',
    "oft": 'run.steps = 6\nadapter.method = "oft"\nadapter.rank = 4\nadapter.targets = ["attn"]'
    '\noptimizer.warmup_steps = 0\noptimizer.schedule = "constant"',
    "pissa": 'run.steps = 20\nadapter.start = "pissa"\noptimizer.rate = 1e-4',
}


@pytest.fixture(autouse=True)
def _one_thread():
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


@pytest.fixture(scope="module", autouse=True)
def _text_encoders_in_fp32(comfy):
    """ComfyUI: on a CPU it keeps text encoders in fp16 (0.30)."""
    from comfy.cli_args import args

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(args, "fp32_text_enc", True)
        yield


@pytest.mark.parametrize("name", SETTINGS)
def test_both_hosts_train_alike(comfy, half_checkpoint, tmp_path, name):
    assert_trained_alike(comfy, half_checkpoint, tmp_path, SETTINGS[name])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families_train_alike(comfy, tmp_path, family):
    """UNet and all text encoders; SDXL is told the sizes of each picture."""
    checkpoint = f"trained-{family}.safetensors"
    script, lora = Path(__file__).with_name("family_checkpoint.py"), tmp_path / "lora.safetensors"
    path = comfy.checkpoints_dir / checkpoint
    settings = f'{SHORT}\nrun.batch_size = 2\nadapter.text_encoder = ["te"]'
    try:
        subprocess.run([sys.executable, "-W", "ignore", script, family, path, lora], check=True)
        assert_trained_alike(comfy, checkpoint, tmp_path, settings)
    finally:
        path.unlink(missing_ok=True)  # gigabytes


def assert_trained_alike(comfy, checkpoint, tmp_path, settings):
    """Equal factors, order, times and noise; losses within 1e-4; files with the same keys."""
    shown = pictures(tmp_path / "pictures")
    runs = Runs(comfy, loaded_checkpoint(checkpoint), tmp_path / "comfyui")
    with torch.inference_mode(False), torch.enable_grad():
        ours, outcome = recorded(
            comfy.pack.__name__, runs.trainable, shown, tmp_path / "comfyui", settings
        )
    theirs, path = embedded(comfy, checkpoint, shown, tmp_path / "embedded", settings)
    losses, other_losses = ours.pop("losses"), theirs.pop("losses")
    assert ours.keys() == theirs.keys()
    different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
    assert different == []
    assert losses.tolist() == pytest.approx(other_losses.tolist(), rel=1e-4)
    assert losses[0] != losses[-1]
    files = load_file(outcome.path), load_file(path)
    assert files[0].keys() == files[1].keys()


def embedded(comfy, checkpoint, shown, folder, settings):
    folder.mkdir()
    script = Path(__file__).with_name("embedded_train.py")
    models = comfy.base_directory / "models"
    arguments = [models, checkpoint, shown, folder, settings]
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return load_file(folder / "record.safetensors"), finished.stdout.splitlines()[-1]
