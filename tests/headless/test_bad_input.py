"""Wrong input on the command line: exit code 2, headline, facts and fix; no file changes."""

import json
import os
import pickle
import struct

import pytest
import torch

from lora_workbench.headless.cli import main
from lora_workbench.lora_core.files.write import write_safetensors

from ..lora_files import (
    Module,
    lora_tensors,
    peft_header,
    small_sd15,
    text_encoder_modules,
    unet_modules,
)

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
MODULES = [Module("unet", TO_Q, (320, 320))]


@pytest.fixture
def base(tmp_path):
    write_safetensors(tmp_path / "base.safetensors", small_sd15())
    return tmp_path / "base.safetensors"


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_refused(capsys, folder, *arguments):
    """Run and return the message; it has a headline, facts and a fix, and no file changed."""
    before = snapshot(folder)
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    message = capsys.readouterr().err
    assert code == 2, message
    lines = message.splitlines()
    assert lines[0].endswith("."), message
    assert not lines[0].startswith((" ", "Fix:"))
    assert any(line.startswith("  ") and ": " in line for line in lines[1:-1]), message
    assert lines[-1].startswith("Fix: "), message
    assert "Traceback" not in message
    assert snapshot(folder) == before
    return message


def refused_by_both(capsys, base, lora):
    """Refuse a LoRA file in `inspect` and in `merge`; return both messages."""
    folder = base.parent
    output = folder / "out.safetensors"
    return (
        assert_refused(capsys, folder, "inspect", lora, "--base", "sd15"),
        assert_refused(capsys, folder, "merge", base, "--lora", lora, "-o", output),
    )


def header_file(path, header, data=b"", length=None):
    """A safetensors file of given header text, bytes or JSON."""
    text = json.dumps(header) if not isinstance(header, str | bytes) else header
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(start, stop, shape=(2,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}


DAMAGED = {
    "empty": lambda path: path.write_bytes(b""),
    "a few bytes": lambda path: path.write_bytes(b"\x08\0\0"),
    "cut in the header": lambda path: _cut(path, 40),
    "cut in the data": lambda path: _cut(path, -10),
    "bytes after the end": lambda path: _append(path, b"12345678"),
    "header longer than the file": lambda path: header_file(path, {}, length=1 << 20),
    "header of 2**63 bytes": lambda path: header_file(path, {}, length=1 << 63),
    "header of -1 bytes": lambda path: header_file(path, {}, length=(1 << 64) - 1),
    "offsets that overlap": lambda path: header_file(
        path, {"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)
    ),
    "offsets outside the file": lambda path: header_file(path, {"a": entry(8, 16)}, bytes(8)),
    "negative offsets": lambda path: header_file(path, {"a": entry(-8, 0)}, bytes(8)),
    "offsets of another shape": lambda path: header_file(path, {"a": entry(0, 8, (3,))}, bytes(8)),
    "a hole": lambda path: header_file(path, {"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)),
    "bad UTF-8": lambda path: header_file(path, b'{"\xff\xfe": 1}'),
    "no JSON": lambda path: header_file(path, "{'a': 1}"),
    "JSON of another kind": lambda path: header_file(path, [1, 2]),
    "deep nesting": lambda path: header_file(path, "[" * 100_000 + "]" * 100_000),
    "a name twice": lambda path: header_file(
        path, '{"a": %s, "a": %s}' % ((json.dumps(entry(0, 8)),) * 2), bytes(8)
    ),
    "a dtype of no format": lambda path: header_file(
        path, {"a": {**entry(0, 8), "dtype": "F31"}}, bytes(8)
    ),
    "metadata that is no text": lambda path: header_file(path, {"__metadata__": {"a": 1}}),
}


def _cut(path, size):
    write_safetensors(path, lora_tensors(MODULES))
    path.write_bytes(path.read_bytes()[:size])


def _append(path, data):
    write_safetensors(path, lora_tensors(MODULES))
    path.write_bytes(path.read_bytes() + data)


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_lora_is_refused(capsys, base, damage):
    path = base.parent / "bad.safetensors"
    DAMAGED[damage](path)
    for message in refused_by_both(capsys, base, path):
        assert "bad.safetensors" in message


@pytest.mark.parametrize("damage", ["empty", "cut in the data", "a name twice"])
def test_a_damaged_checkpoint_is_refused(capsys, base, damage):
    folder = base.parent
    lora, bad = folder / "lora.safetensors", folder / "bad.safetensors"
    write_safetensors(lora, lora_tensors(MODULES))
    DAMAGED[damage](bad)
    assert_refused(capsys, folder, "inspect", lora, "--base", bad)
    assert_refused(capsys, folder, "merge", bad, "--lora", lora, "-o", folder / "out.safetensors")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("role", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_nan_and_infinity_are_refused_with_the_tensor(capsys, base, role, value):
    tensors = lora_tensors(MODULES, alpha=2.0)
    key = next(key for key in tensors if key.endswith(role))
    tensors[key] = tensors[key].clone()
    tensors[key].view(-1)[-1] = value
    write_safetensors(base.parent / "nan.safetensors", tensors)
    for message in refused_by_both(capsys, base, base.parent / "nan.safetensors"):
        assert key in message


def test_factors_of_two_ranks_are_refused(capsys, base):
    tensors = lora_tensors(MODULES)
    up = next(key for key in tensors if "lora_up" in key)
    tensors[up] = torch.ones(320, 3)
    write_safetensors(base.parent / "rank.safetensors", tensors)
    for message in refused_by_both(capsys, base, base.parent / "rank.safetensors"):
        assert "disagree on the rank: down [4, 320], up [320, 3]" in message


def test_factors_of_another_shape_are_refused(capsys, base):
    write_safetensors(
        base.parent / "shape.safetensors", lora_tensors([Module("unet", TO_Q, (640, 320))])
    )
    for message in refused_by_both(capsys, base, base.parent / "shape.safetensors"):
        assert "up [640, 4], weight [320, 320]" in message


@pytest.mark.parametrize("other", ["sd21", "sdxl", "sdxl-refiner"])
def test_a_lora_for_another_base_is_refused(capsys, base, other):
    modules = unet_modules(other, "ldm") + text_encoder_modules(other)
    path = base.parent / "other.safetensors"
    write_safetensors(path, lora_tensors(modules, rank=1, alpha=1.0))
    refused_by_both(capsys, base, path)


@pytest.mark.parametrize("model", ["flux", "sd3"])
def test_a_base_that_comes_later_is_refused_and_the_file_described(capsys, base, model):
    write_safetensors(base.parent / "lora.safetensors", lora_tensors(MODULES))
    message = assert_refused(
        capsys, base.parent, "inspect", base.parent / "lora.safetensors", "--base", model
    )
    assert f"The base {model} comes in a later version." in message


def test_a_missing_file_is_refused_with_names_like_it(capsys, base):
    write_safetensors(base.parent / "add_detail.safetensors", lora_tensors(MODULES))
    for message in refused_by_both(capsys, base, base.parent / "add_detial.safetensors"):
        assert "add_detail.safetensors" in message


def test_a_common_ending_makes_no_names_alike(capsys, base):
    for message in refused_by_both(capsys, base, base.parent / "zebra.safetensors"):
        assert "similar names in it: none" in message


def test_a_folder_without_a_lora_is_refused(capsys, base):
    (base.parent / "folder").mkdir()
    refused_by_both(capsys, base, base.parent / "folder")


def test_a_file_of_another_kind_is_refused(capsys, base):
    (base.parent / "notes.txt").write_text("hello")
    refused_by_both(capsys, base, base.parent / "notes.txt")


OTHERS = {
    "this is a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
    "this is a web page": b"\n<!DOCTYPE html><html><title>Log in</title></html>",
    "this is a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
}


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("what", OTHERS)
def test_what_is_saved_under_the_name_of_a_model_is_called_what_it_is(capsys, base, what, ending):
    path = base.parent / f"lora.{ending}"
    path.write_bytes(OTHERS[what])
    for message in refused_by_both(capsys, base, path):
        assert what in message


def test_a_checkpoint_is_no_lora(capsys, base):
    message = assert_refused(capsys, base.parent, "inspect", base)
    assert "is not a LoRA" in message


class Payload:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_pickle_is_not_run(capsys, base, writer):
    path, trap = base.parent / "evil.pt", base.parent / "trap"
    if writer == "torch":
        torch.save({"x.lora_down.weight": torch.ones(2, 2), "y": Payload(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"y": Payload(trap)}, protocol=2))
    refused_by_both(capsys, base, path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--strength", "100.01"),
        ("--strength", "-1000"),
        ("--strength", "nan"),
        ("--strength", "inf"),
        ("--strength", "much"),
        ("--clip-strength", "1e9"),
        ("--weighting", "IN04=1000"),
        ("--weighting", "IN99=1"),
        ("--weighting", "atn=0.5"),
        ("--weighting", "1,2,3"),
        ("--unmatched", "perhaps"),
    ],
)
def test_a_value_out_of_range_is_refused(capsys, base, option, value):
    folder = base.parent
    write_safetensors(folder / "lora.safetensors", lora_tensors(MODULES))
    output = folder / "out.safetensors"
    assert_refused(
        capsys,
        folder,
        *("merge", base, "--lora", folder / "lora.safetensors", f"{option}={value}", "-o", output),
    )


def test_an_unknown_base_is_refused_with_the_nearest(capsys, base):
    write_safetensors(base.parent / "lora.safetensors", lora_tensors(MODULES))
    message = assert_refused(
        capsys, base.parent, "inspect", base.parent / "lora.safetensors", "--base", "sd-15"
    )
    assert "use 'sd15'" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["merge"],
        ["merge", "base.safetensors", "-o", "x.safetensors"],
        ["merge", "base.safetensors", "--strength", "1", "-o", "x.safetensors"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["inspekt", "a"],
        ["inspect", "a", "--jsno"],
        ["train", "--keys", "--example"],
        ["run", "a.json", "--comfyui-args=--cpu"],
        ["run", "a.json", "--comfyui", "http://127.0.0.1:1", "--comfyui-args=--cpu"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_refused(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    write_safetensors(tmp_path / "base.safetensors", {"a": torch.ones(1)})
    assert_refused(capsys, tmp_path, *arguments)


@pytest.mark.parametrize(
    ("command", "option", "meant"),
    [
        ("inspect", "--jsno", "--json"),
        ("merge", "--strenght=1", "--strength"),
        ("train", "--ouput", "--output"),
    ],
)
def test_a_misspelt_option_is_told_with_its_commands_usage(capsys, command, option, meant):
    assert main([command, "a", *(["-o", "b"] if command == "merge" else []), option]) == 2
    err = capsys.readouterr().err
    assert f"Usage: lora-workbench {command} " in err
    assert f"Fix: use {meant!r}." in err


@pytest.mark.parametrize("name", ["out.ckpt", "out", "missing/out.safetensors"])
def test_an_output_that_cannot_be_written_is_refused(capsys, base, name):
    folder = base.parent
    write_safetensors(folder / "lora.safetensors", lora_tensors(MODULES))
    lora, output = folder / "lora.safetensors", folder / name
    assert_refused(capsys, folder, "merge", base, "--lora", lora, "-o", output)


def test_an_existing_output_is_refused(capsys, base):
    folder = base.parent
    write_safetensors(folder / "lora.safetensors", lora_tensors(MODULES))
    (folder / "out.safetensors").write_text("mine")
    lora, output = folder / "lora.safetensors", folder / "out.safetensors"
    message = assert_refused(capsys, folder, "merge", base, "--lora", lora, "-o", output)
    assert "--force" in message


@pytest.mark.parametrize("which", ["base", "lora"])
def test_an_input_as_output_is_refused_even_by_force(capsys, base, which):
    folder = base.parent
    lora = folder / "lora.safetensors"
    write_safetensors(lora, lora_tensors(MODULES))
    output = {"base": base, "lora": lora}[which]
    assert_refused(capsys, folder, "merge", base, "--lora", lora, "-o", output, "--force")


def test_a_lora_at_strength_zero_is_no_output_either(capsys, base):
    folder = base.parent
    lora = folder / "lora.safetensors"
    write_safetensors(lora, lora_tensors(MODULES))
    command = ("merge", base, "--lora", lora, "--strength", "0", "-o", lora, "--force")
    assert_refused(capsys, folder, *command)


def test_unmatched_tensors_are_refused_when_asked(capsys, base):
    folder = base.parent
    elsewhere = Module("unet", "up_blocks.3.attentions.2.proj_in", (320, 320, 1, 1))
    write_safetensors(folder / "lora.safetensors", lora_tensors([*MODULES, elsewhere]))
    command = ("merge", base, "--lora", folder / "lora.safetensors", "--unmatched", "error")
    message = assert_refused(capsys, folder, *command, "-o", folder / "out.safetensors")
    assert "2 tensors are not used" in message


CONFIGS = {
    "no JSON": "{",
    "a list": "[1]",
    "alpha as text": '{"lora_alpha": "8"}',
    "infinite alpha": '{"lora_alpha": 1e999}',
    "an alpha of 400 digits": '{"lora_alpha": 1' + "0" * 400 + "}",
    "an alpha of 5000 digits": '{"lora_alpha": 1' + "0" * 5000 + "}",
    "a pattern that is a list": '{"lora_alpha": 8, "alpha_pattern": [1]}',
    "a pattern with a text": '{"lora_alpha": 8, "alpha_pattern": {"to_q": "x"}}',
    "a regular expression": '{"lora_alpha": 8, "alpha_pattern": {".*(a+)+$": 1}}',
    "deep nesting": "[" * 100_000,
}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_broken_adapter_config_is_refused(capsys, base, config):
    folder = base.parent / "adapter"
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", lora_tensors(MODULES, "peft"))
    (folder / "adapter_config.json").write_text(CONFIGS[config])
    refused_by_both(capsys, base, folder)


def test_a_config_that_is_no_utf8_is_refused(capsys, base):
    folder = base.parent / "adapter"
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", lora_tensors(MODULES, "peft"))
    (folder / "adapter_config.json").write_bytes(b"\xff\xfe{}")
    refused_by_both(capsys, base, folder)


@pytest.mark.parametrize("header", ["{", '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": 1e999}'])
def test_a_broken_config_in_the_header_is_refused(capsys, base, header):
    path = base.parent / "lora.safetensors"
    write_safetensors(path, lora_tensors(MODULES, "peft"), {"lora_adapter_metadata": header})
    refused_by_both(capsys, base, path)


def test_names_in_a_config_reach_no_other_file(capsys, base):
    """base_model_name_or_path and the like are not opened, wherever they point."""
    folder = base.parent / "adapter"
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", lora_tensors(MODULES, "peft"))
    config = {"lora_alpha": 8, "base_model_name_or_path": "../../etc/passwd", "revision": "../x"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    before = snapshot(base.parent)
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modules"][0]["alpha"] == 8
    assert snapshot(base.parent) == before


def test_control_characters_of_a_file_do_not_reach_the_terminal(capsys, base):
    path = base.parent / "lora.safetensors"
    tensors = lora_tensors(MODULES, "peft") | {"\x1b[2J\x1b]0;x\x07": torch.ones(1)}
    write_safetensors(path, tensors, {"ss_output_name": "\x1b[31mred", **peft_header(4, 4.0)})
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
    tensors["\x1b[2J\x1b]0;x\x07"][0] = torch.nan
    path.unlink()
    write_safetensors(path, tensors)
    assert "\x1b" not in assert_refused(capsys, base.parent, "inspect", path)


def test_with_json_an_error_is_the_one_document_on_standard_output(capsys, tmp_path):
    assert main(["inspect", str(tmp_path / "none.safetensors"), "--json"]) == 2
    output = capsys.readouterr()
    error = json.loads(output.out)["error"]
    assert set(error) == {"headline", "facts", "fix"}
    assert output.err.startswith(error["headline"])
