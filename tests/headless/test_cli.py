"""The command line: what is printed where, exit codes, and that nothing heavy is imported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_workbench.headless import demo, demo_graphs
from lora_workbench.headless.cli import main
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.lora_core.models import table_from_shapes
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.stack import StackItem, make_plan
from lora_workbench.lora_core.weighting import Weighting

from ..core.kind_cases import change64, loha, lokr, oft
from ..lora_files import Module, lora_tensors, small_sd15, write_lora

KEYS = {
    *("file", "sha256", "base", "family", "formats"),
    *("tensors_total", "tensors_used", "tensors_unused"),
    *("modules", "unused", "verdict", "notes"),
}
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
MODULES = [
    Module("unet", f"{BLOCK}.attn1.to_q", (320, 320)),
    Module("unet", f"{BLOCK}.attn2.to_k", (320, 768)),
    Module("te1", "text_model.encoder.layers.0.self_attn.q_proj", (768, 768)),
]


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.safetensors"
    write_safetensors(path, small_sd15(), {"modelspec.title": "base", "sshs_model_hash": "ab"})
    return path


@pytest.fixture
def lora(tmp_path):
    return write_lora(tmp_path / "lora.safetensors", MODULES, naming="kohya", alpha=2.0)


def run_json(capsys, *arguments):
    capsys.readouterr()
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def in_memory(base, *items):
    """What the ledger makes of the same stack."""
    file = open_safetensors(base)
    table = table_from_shapes({key: info.shape for key, info in file.tensors.items()})
    weights = file.read_many(file.tensors)
    MergeLedger(weights, "full").apply(make_plan(items, table))
    return weights


def assert_same_weights(path, weights):
    file = open_safetensors(path)
    assert file.tensors.keys() == weights.keys()
    for key, weight in weights.items():
        assert torch.equal(file.read(key).view(torch.int16), weight.view(torch.int16)), key


def test_inspect_prints_the_contract_as_json(capsys, lora):
    code, document = run_json(capsys, "inspect", lora)
    assert code == 0
    assert set(document) == KEYS
    assert document["file"] == str(lora)
    assert (document["base"], document["family"]) == ("sd15", "sd15")
    assert document["tensors_used"] == document["tensors_total"] == 9
    expected = {"lora_key", "target_key", "kind", "rank", "alpha", "scale"}
    assert [set(module) for module in document["modules"]] == [expected] * 3


def test_inspect_prints_text_by_default(capsys, lora):
    assert main(["inspect", str(lora)]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("lora.safetensors fits sd15: all 9 tensors are used.")
    assert output.err == ""


def test_a_checkpoint_can_be_the_base(capsys, base, lora):
    code, document = run_json(capsys, "inspect", lora, "--base", base)
    assert (code, document["base"], document["verdict"]) == (0, str(base), "fits")


def test_a_wrong_base_is_exit_code_2_with_the_whole_report(capsys, lora):
    code, document = run_json(capsys, "inspect", lora, "--base", "sdxl-refiner")
    assert code == 2
    assert (document["verdict"], document["family"]) == ("wrong base", "sd15")


@pytest.mark.parametrize("model", ["flux", "sd3"])
def test_a_base_of_a_later_version_is_exit_code_2_with_a_description(capsys, lora, model):
    code, document = run_json(capsys, "inspect", lora, "--base", model)
    assert code == 2
    assert document["formats"] == ["kohya"]
    assert {row["reason"] for row in document["unused"]} == {
        f"{model} models come in a later version"
    }


def test_a_report_of_a_file_that_cannot_be_applied_ends_with_a_fix(capsys, tmp_path):
    narrow = Module("unet", MODULES[0].path, (32, 32))
    small = write_lora(tmp_path / "small.safetensors", [narrow])
    numbered = tmp_path / "numbered.safetensors"
    write_safetensors(numbered, {f"unet:0:{role}": torch.ones(4, 4) for role in ("up", "down")})
    for path, fix in ((small, "--base CHECKPOINT"), (numbered, "kohya's or diffusers' names")):
        assert main(["inspect", str(path)]) == 0
        last = capsys.readouterr().err.strip()
        assert last.startswith("Fix: ") and fix in last


def test_a_peft_folder_takes_alpha_from_its_config(capsys, tmp_path):
    """rsLoRA: scale = alpha / sqrt(rank) = 8 / 2; attn2.to_k has an alpha of its own: 2 / 2."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_lora(folder / "adapter_model.safetensors", MODULES[:2], naming="peft-raw", rank=4)
    config = {"lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"attn2.to_k": 2}, "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    code, document = run_json(capsys, "inspect", folder)
    scales = {m["lora_key"].rpartition(".")[2]: m["scale"] for m in document["modules"]}
    assert (code, scales) == (0, {"to_q": 4.0, "to_k": 1.0})


def test_merge_writes_what_the_ledger_makes_in_memory(capsys, base, lora, tmp_path):
    out = tmp_path / "out.safetensors"
    peft = write_lora(tmp_path / "peft.safetensors", MODULES[:2], naming="peft", seed=5)
    code, receipt = run_json(
        capsys,
        *("merge", base, "--lora", lora, "--strength", "0.8", "--clip-strength", "-0.5"),
        *("--lora", peft, "--strength=-0.25", "--weighting", "attn2=0.5", "-o", out),
    )
    assert code == 0
    items = (
        StackItem(load_lora(lora), 0.8, -0.5),
        StackItem(load_lora(peft), -0.25, -0.25, Weighting.parse("attn2=0.5")),
    )
    assert_same_weights(out, in_memory(base, *items))
    assert receipt["tensors_changed"] == 3
    assert [record["tensors_used"] for record in receipt["loras"]] == [9, 4]


def test_loha_lokr_and_oft_are_inspected_and_merged_as_the_definitions_say(
    capsys, base, tmp_path, generator
):
    names = [f"lora_unet_{BLOCK}.attn1.to_q", f"lora_unet_{BLOCK}.attn2.to_k", "lora_te_"]
    names[2] += "text_model.encoder.layers.0.self_attn.q_proj"
    builds, tensors = (loha, lokr, oft), {}
    names = [name.replace(".", "_") for name in names]
    for build, name, module in zip(builds, names, MODULES, strict=True):
        tensors |= build(name, module.shape, generator)
    path, out = tmp_path / "kinds.safetensors", tmp_path / "out.safetensors"
    write_safetensors(path, tensors)
    code, document = run_json(capsys, "inspect", path)
    assert (code, document["verdict"], document["unused"]) == (0, "fits", [])
    assert sorted(module["kind"] for module in document["modules"]) == ["loha", "lokr", "oft"]
    code, receipt = run_json(capsys, "merge", base, "--lora", path, "--strength", "0.7", "-o", out)
    assert (code, receipt["tensors_changed"]) == (0, 3)
    assert_same_weights(out, in_memory(base, StackItem(load_lora(path), 0.7, 0.7)))
    before, after = open_safetensors(base), open_safetensors(out)
    changed = [key for key in before.tensors if not torch.equal(before.read(key), after.read(key))]
    for name, shape in zip(names, (m.shape for m in MODULES), strict=True):
        errors = []
        for key in changed:
            old, new = before.read(key), after.read(key)
            if tuple(old.shape) == shape:
                exact = old.double() + change64(tensors, name, old, 0.7)
                errors.append(float((new.double() - exact).norm() / exact.norm()))
        assert min(errors) < 2**-10


def test_the_header_of_a_merge_names_the_loras(capsys, base, lora, tmp_path):
    out = tmp_path / "out.safetensors"
    run_json(capsys, "merge", base, "--lora", lora, "--weighting", "IN01=0.5", "-o", out)
    header = dict(open_safetensors(out).metadata)
    (merge,) = json.loads(header.pop("lora_workbench.merged"))
    assert header == {"modelspec.title": "base"}
    assert merge["base"] == "base.safetensors"
    assert merge["base_hashes"] == {"sshs_model_hash": "ab"}
    assert merge["loras"] == [
        {
            "name": "lora.safetensors",
            "sha256": load_lora(lora).sha256,
            "strength_model": 1.0,
            "strength_clip": 1.0,
            "weighting": "IN01=0.5",
        }
    ]


def test_the_order_of_the_loras_changes_no_bit(capsys, base, lora, tmp_path):
    other = write_lora(tmp_path / "other.safetensors", MODULES, naming="kohya", rank=3, seed=9)
    files = []
    for number, (first, second) in enumerate(((lora, other), (other, lora))):
        out = tmp_path / f"out{number}.safetensors"
        run_json(capsys, "merge", base, "--lora", first, "--lora", second, "-o", out)
        files.append({k: v.tolist() for k, v in open_safetensors(out).read_many(DATA).items()})
    assert files[0] == files[1]


DATA = ["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"]


def test_force_replaces_another_file(capsys, base, lora, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_text("old")
    code, _ = run_json(capsys, "merge", base, "--lora", lora, "-o", out, "--force")
    assert code == 0
    assert_same_weights(out, in_memory(base, StackItem(load_lora(lora))))


def test_strength_zero_copies_the_checkpoint(capsys, base, lora, tmp_path):
    out = tmp_path / "out.safetensors"
    _, receipt = run_json(capsys, "merge", base, "--lora", lora, "--strength", "0", "-o", out)
    assert receipt["tensors_changed"] == 0
    assert_same_weights(out, in_memory(base))


def test_what_a_merge_does_not_use_is_in_the_receipt(capsys, base, tmp_path):
    elsewhere = Module("unet", "up_blocks.3.attentions.2.proj_in", (320, 320, 1, 1))
    lora = write_lora(tmp_path / "lora.safetensors", [*MODULES, elsewhere], naming="kohya")
    out = tmp_path / "out.safetensors"
    command = ("merge", base, "--lora", lora, "--weighting", "OUT11=0.5", "-o")
    _, receipt = run_json(capsys, *command, out)
    (record,) = receipt["loras"]
    assert (record["tensors_used"], len(record["unused"])) == (6, 2)
    assert any("OUT11=0.5" in note for note in record["notes"])
    main([str(argument) for argument in (*command, out, "--force")])
    text = capsys.readouterr().out
    assert "out.safetensors: 3 of " in text
    assert "2 tensors not used: the model has no module of this name" in text


def test_no_command_prints_the_help(capsys):
    assert main([]) == 0
    assert "inspect" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"], ["merge", "--help"]])
def test_help_is_exit_code_0(capsys, arguments):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0
    assert "usage: lora-workbench" in capsys.readouterr().out


def test_the_version_is_that_of_the_distribution(capsys):
    from importlib.metadata import version

    with pytest.raises(SystemExit):
        main(["--version"])
    assert version("comfyui-lora-workbench") in capsys.readouterr().out


BOTH_COMMANDS = """
from lora_workbench.headless.cli import main
base, lora, out = sys.argv[1:]
assert main(["inspect", lora]) == 0
assert main(["merge", base, "--lora", lora, "-o", out]) == 0
"""


def run_both(base, lora, tmp_path, before="", after=""):
    script = "\n".join(("import sys", before, BOTH_COMMANDS, after))
    command = [sys.executable, "-c", script, base, lora, tmp_path / "out.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_inspect_and_merge_import_neither_diffusers_nor_transformers(base, lora, tmp_path):
    heavy = {"diffusers", "transformers", "accelerate", "peft", "PIL", "safetensors"}
    check = f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    run_both(base, lora, tmp_path, after=check)


def test_progress_is_optional(base, lora, tmp_path):
    """Without tqdm there is no bar and no error."""
    run_both(base, lora, tmp_path, before='sys.modules["tqdm"] = None')


def test_a_reader_that_has_gone_is_no_error_message(lora):
    """``lora-workbench inspect FILE | head``: standard output is closed at the other end."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lora_workbench.headless.cli", "inspect", lora]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_interrupt_during_a_merge_is_exit_code_1_and_leaves_nothing(
    capsys, base, lora, tmp_path, monkeypatch
):
    from lora_workbench.lora_core.patching import merge_file

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(merge_file, "_write_tensor", interrupt)
    out = tmp_path / "out.safetensors"
    assert main(["merge", str(base), "--lora", str(lora), "-o", str(out)]) == 1
    assert capsys.readouterr().err == "Interrupted; no file was changed.\n"
    assert {path.name for path in tmp_path.iterdir()} == {base.name, lora.name}


def test_an_interrupt_before_the_command_has_begun_is_one_line(tmp_path):
    """Torch takes a second to import; here the import itself presses Ctrl-C."""
    (tmp_path / "torch.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    code = (
        f"import signal, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from lora_workbench.headless.cli import main\nsys.exit(main(['--version']))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ)
    assert finished.returncode == 130
    assert finished.stderr == b"Interrupted before anything was done.\n"


def test_a_refusing_system_is_exit_code_1(capsys, base, lora, tmp_path, monkeypatch):
    from lora_workbench.lora_core.patching import merge_file

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge_file, "_write_tensor", full)
    out = tmp_path / "out.safetensors"
    assert main(["merge", str(base), "--lora", str(lora), "-o", str(out)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not out.exists()


def write_small(path):
    write_safetensors(path, small_sd15())


def test_the_demo_restores_the_base(capsys, tmp_path, monkeypatch):
    """The real demo on the first blocks of a model; the whole takes 20 s."""

    real = tmp_path / "real"
    real.mkdir()
    write_lora(real / "published.safetensors", MODULES, naming="kohya")
    monkeypatch.setattr(demo, "write_random_checkpoint", write_small)
    assert main(["demo", "--folder", str(tmp_path), "--real-files", str(real)]) == 0
    text = capsys.readouterr().out
    assert "base restored bit for bit: yes" in text
    assert "merge 1 published files" in text
    assert [path.name for path in tmp_path.iterdir()] == ["real"]


def test_the_demo_writes_the_models_that_the_examples_name_whole_or_not(capsys, tmp_path):
    folder = tmp_path / "models"
    assert main(["demo", "--models", str(folder)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(written) == sorted(folder.rglob("*.*"))
    graph = (demo_graphs.EXAMPLES / "load-and-apply.json").read_text()
    assert {path.name for path in written} == set(re.findall(r"\w+\.safetensors", graph))
    written[0].unlink()
    assert main(["demo", "--models", str(folder)]) == 2
    assert str(written[1]) in capsys.readouterr().err
    assert not written[0].exists()
    assert main(["demo", "--models", str(folder), "--train"]) == 2


def test_the_demo_says_when_a_base_is_not_restored(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(
        demo, "write_random_checkpoint", lambda p: write_safetensors(p, small_sd15())
    )
    monkeypatch.setattr(demo.MergeLedger, "apply", lambda ledger, plan: ())
    spoil = torch.full((320, 320), 7.0, dtype=torch.float16)
    read_many = demo.SafetensorsFile.read_many

    def spoiled(file, keys):
        return read_many(file, keys) | dict.fromkeys(set(DATA) & set(file.tensors), spoil)

    monkeypatch.setattr(demo.SafetensorsFile, "read_many", spoiled)
    monkeypatch.setattr(demo.SafetensorsFile, "read", lambda f, k: read_many(f, [k])[k])
    monkeypatch.setattr(demo, "show_pictures", lambda *_: True)
    assert main(["demo", "--folder", str(tmp_path)]) == 1
    assert "base restored bit for bit: no, 1 tensors differ" in capsys.readouterr().out


def test_the_random_files_of_the_demo_are_used_whole(tmp_path):
    from lora_workbench.headless.sample_files import write_random_lora
    from lora_workbench.lora_core.explain import explain

    scales = {"kohya": 0.5, "diffusers": 1.0, "peft": 0.5}
    for naming, scale in scales.items():
        path = tmp_path / f"{naming}.safetensors"
        write_random_lora(path, naming, 4, 2.0, seed=0)
        report = explain(load_lora(path), base="sd15")
        assert (report.verdict, report.family) == ("fits", "sd15")
        assert {bound.module.scale for bound in report.binding.used()} == {scale}


def test_equal_seeds_give_equal_random_files(tmp_path):
    from lora_workbench.headless.sample_files import write_random_lora

    for name in ("a", "b"):
        write_random_lora(tmp_path / name, "kohya", 2, 1.0, seed=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_lora_tensors_of_the_tests_have_the_names_of_the_writers():
    keys = list(lora_tensors(MODULES[:1], "diffusers-2023"))
    assert keys[0] == f"unet.{BLOCK}.attn1.processor.to_q_lora.down.weight"
