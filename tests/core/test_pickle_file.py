"""Pickled files: only plain tensors come out, and no code of the file is run."""

import hashlib
import io
import os
import pickle
import random
from collections import OrderedDict

import pytest
import torch

from lora_workbench.lora_core.errors import DamagedFileError, LoraError, UnsupportedFormatError
from lora_workbench.lora_core.files.pickle_file import PICKLE_SUFFIXES, PickleFile, open_pickle
from lora_workbench.lora_core.files.tensor_file import open_tensor_file

both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class DictAsStorage:
    """A tensor whose storage is a dict: each call is allowed, together they make no sense."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, ({}, 0, (1,), (1,), False, OrderedDict())


def save(value, path, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.bin"


@pytest.fixture
def tensors(generator):
    return {
        "a.weight": torch.randn(5, 3, generator=generator),
        "b.weight": torch.randn(2, 7, generator=generator).bfloat16(),
        "b.alpha": torch.tensor(4.0),
        "empty": torch.zeros(0, 3),
    }


@both_formats
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}],
                         ids=["plain", "state_dict"])  # fmt: skip
def test_tensors_come_back(path, tensors, zipped, wrap):
    file = open_pickle(save(wrap(tensors), path, zipped))
    assert {key: info.shape for key, info in file.tensors.items()} == {
        key: tuple(tensor.shape) for key, tensor in tensors.items()
    }
    assert file.metadata == {}
    torch.testing.assert_close(file.read_many(tensors), tensors, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", PICKLE_SUFFIXES)
def test_the_ending_chooses_this_reader(tmp_path, tensors, suffix):
    path = save(tensors, tmp_path / f"a{suffix.upper()}")
    assert isinstance(open_tensor_file(path), PickleFile)


def test_a_real_file_reads_as_by_torch(shared_data):
    path = shared_data / "real_files" / "catundchat" / "pytorch_lora_weights.bin"
    file, theirs = open_tensor_file(path), torch.load(path, "cpu")
    torch.testing.assert_close(file.read_many(file.tensors), dict(theirs), rtol=0, atol=0)
    names = open_tensor_file(path.with_suffix(".safetensors")).tensors
    assert {key: info.shape for key, info in file.tensors.items()} == {
        key: info.shape for key, info in names.items()
    }


def test_plain_numbers_are_alphas(path):
    file = open_pickle(save({"a.alpha": 8, "b.alpha": 0.5}, path))
    torch.testing.assert_close(file.read("a.alpha"), torch.tensor(8.0))
    torch.testing.assert_close(file.read("b.alpha"), torch.tensor(0.5))


def test_parameters_come_back_as_tensors(path):
    file = open_pickle(save(torch.nn.Linear(3, 2).state_dict(keep_vars=True), path))
    assert type(file.read("weight")) is torch.Tensor
    assert not file.read("weight").requires_grad


def test_each_read_gives_memory_of_its_own(path):
    shared = torch.arange(6.0)
    file = open_pickle(save({"all": shared, "part": shared[2:4]}, path))
    file.read("part").zero_()
    assert file.read("all").tolist() == [0, 1, 2, 3, 4, 5]
    assert file.read("part").untyped_storage().nbytes() == 8


@both_formats
def test_code_in_a_file_is_refused_and_not_run(path, tmp_path, zipped):
    folder = tmp_path / "made by the file"
    save({"a.weight": torch.ones(2), "b": RunsCode(folder)}, path, zipped)
    with pytest.raises(UnsupportedFormatError, match="carries code") as caught:
        open_pickle(path)
    assert not folder.exists()
    assert "safetensors" in caught.value.fix
    assert "mkdir" in caught.value.facts["torch says"]


def test_a_plain_pickle_with_code_is_refused_and_not_run(path, tmp_path):
    folder = tmp_path / "made by the file"
    path.write_bytes(pickle.dumps(RunsCode(folder), protocol=2))
    with pytest.raises(LoraError, match=r"Fix: .*"):
        open_pickle(path)
    assert not folder.exists()


def test_an_archive_of_code_is_refused(path):
    data = io.BytesIO()
    with torch.package.PackageExporter(data) as exporter:
        exporter.save_pickle("a", "a.pkl", {"x": 1})
    path.write_bytes(data.getvalue())
    with pytest.raises(LoraError):
        open_pickle(path)


REFUSED = {
    "a number": {"a.weight": 3},
    "a bool as alpha": {"a.alpha": True},
    "text": {"a.weight": "x"},
    "a list": {"a.weight": [torch.ones(2)]},
    "a number as name": {3: torch.ones(2)},
    "a sparse tensor": {"a.weight": torch.ones(2, 2).to_sparse()},
    "a tensor without data": {"a.weight": torch.ones(2, device="meta")},
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_plain_tensor_is_refused_by_name(path, value):
    with pytest.raises(UnsupportedFormatError, match="more than plain tensors") as caught:
        open_pickle(save(value, path))
    assert caught.value.facts["name"] == repr(next(iter(value)))


@pytest.mark.parametrize("value", [torch.ones(2), [torch.ones(2)], 3], ids=["tensor", "list", "3"])
def test_what_is_no_dict_is_refused(path, value):
    with pytest.raises(UnsupportedFormatError, match="no dict of tensors"):
        open_pickle(save(value, path))


def test_a_tensor_that_claims_more_than_the_file_is_refused(path):
    save({"a.weight": torch.ones(1).expand(10**6, 10**6)}, path)
    with pytest.raises(DamagedFileError, match="larger than the file"):
        open_pickle(path)


@pytest.mark.parametrize("data", [b"", b"\0", b"no pickle at all", b"PK\x03\x04"])
def test_a_file_of_other_bytes_is_damaged(path, data):
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match="cannot be read"):
        open_pickle(path)


def test_a_file_of_allowed_calls_that_make_no_sense_is_damaged(path):
    with pytest.raises(DamagedFileError, match="cannot be read"):
        open_pickle(save({"a.weight": DictAsStorage()}, path))


@both_formats
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_changed_bytes_give_an_error_of_ours_or_tensors(path, tensors, zipped):
    whole = save(tensors, path, zipped).read_bytes()
    choose = random.Random(0)
    for _ in range(150):
        changed = bytearray(whole)
        changed[choose.randrange(len(whole))] = choose.randrange(256)
        path.write_bytes(changed[: choose.choice([None, choose.randrange(len(whole))])])
        try:
            file = open_pickle(path)
        except LoraError:
            continue
        assert file.read_many(file.tensors).keys() == file.tensors.keys()


def test_a_missing_file_names_its_neighbours(path, tensors):
    save(tensors, path)
    with pytest.raises(LoraError, match="does not exist") as caught:
        open_pickle(path.with_name("aa.bin"))
    assert caught.value.fix == "use 'a.bin'."


def test_the_hash_is_that_of_the_bytes(path, tensors):
    file = open_pickle(save(tensors, path))
    assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
