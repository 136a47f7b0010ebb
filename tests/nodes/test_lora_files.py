"""Names in rows against files on disk: exact, other separators, moved, renamed, missing."""

import hashlib

import pytest
import torch

from lora_workbench.hosts.hash_store import HashStore
from lora_workbench.hosts.lora_files import LoraFiles
from lora_workbench.hosts.protocol import LoraChoice
from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.files.write import write_safetensors


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "x.lora_down.weight": torch.full((2, 6), float(value)),
        "x.lora_up.weight": torch.ones(5, 2),
    }
    write_safetensors(path, tensors, overwrite=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "loras"


@pytest.fixture
def files(folder, tmp_path):
    def names():
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*.safetensors"))

    return LoraFiles(names, lambda name: folder / name, HashStore(tmp_path / "user" / "h.sqlite"))


@pytest.mark.parametrize("name", ["style/a.safetensors", "style\\a.safetensors", "style/a", "a"])
def test_separators_endings_and_folders_may_differ(folder, files, name):
    write(folder / "style" / "a.safetensors", 1)
    write(folder / "ab.safetensors", 2)
    assert files.resolve(LoraChoice(name)) == "style/a.safetensors"


def test_a_name_is_never_matched_by_a_part_of_it(folder, files):
    write(folder / "detail_v2.safetensors", 1)
    with pytest.raises(LoraError, match=r"missing(.|\n)*detail_v2"):
        files.resolve(LoraChoice("detail"))


def test_a_renamed_file_is_found_by_its_content(folder, files):
    digest = write(folder / "new" / "name.safetensors", 1)
    write(folder / "other.safetensors", 2)
    size = (folder / "other.safetensors").stat().st_size
    assert files.resolve(LoraChoice("old.safetensors", digest, size)) == "new/name.safetensors"
    assert files.resolve(LoraChoice("old.safetensors", digest)) == "new/name.safetensors"


def test_the_pinned_content_wins_over_the_name(folder, files):
    write(folder / "a.safetensors", 1)
    digest = write(folder / "b.safetensors", 2)
    assert files.resolve(LoraChoice("a.safetensors", digest)) == "b.safetensors"


def test_another_content_under_the_pinned_name_is_an_error(folder, files):
    write(folder / "a.safetensors", 1)
    with pytest.raises(LoraError, match="not the file this row was made with"):
        files.resolve(LoraChoice("a.safetensors", "0" * 64))


def test_only_files_of_the_pinned_size_are_hashed(folder, files, monkeypatch):
    digest = write(folder / "a.safetensors", 1)
    (folder / "big.safetensors").write_bytes(b"x" * 5000)
    hashed = []
    original = HashStore.sha256
    monkeypatch.setattr(
        HashStore, "sha256", lambda self, path: hashed.append(path.name) or original(self, path)
    )
    size = (folder / "a.safetensors").stat().st_size
    assert files.resolve(LoraChoice("gone.safetensors", digest, size)) == "a.safetensors"
    assert hashed == ["a.safetensors"]


def test_a_hash_is_computed_once_until_the_file_changes(folder, tmp_path, monkeypatch):
    from lora_workbench.hosts import hash_store

    calls = []
    original = hash_store.hash_file
    monkeypatch.setattr(
        hash_store, "hash_file", lambda *args: calls.append(args) or original(*args)
    )
    path = folder / "a.safetensors"
    first = write(path, 1)
    store = HashStore(tmp_path / "h.sqlite")
    assert store.sha256(path) == first
    assert HashStore(tmp_path / "h.sqlite").sha256(path) == first
    assert len(calls) == 1
    second = write(path, 2)
    assert store.sha256(path) == second != first


def test_two_files_of_one_name_are_ambiguous(folder, files):
    write(folder / "x" / "a.safetensors", 1)
    write(folder / "y" / "a.safetensors", 2)
    with pytest.raises(LoraError, match=r"Several(.|\n)*x/a.safetensors"):
        files.resolve(LoraChoice("a"))
    assert files.resolve(LoraChoice("y/a")) == "y/a.safetensors"


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/passwd", "C:\\a.safetensors", "", ".", ".."]
)
def test_names_stay_inside_the_folders(folder, files, name):
    write(folder / "a.safetensors", 1)
    with pytest.raises(LoraError, match="not a name inside"):
        files.resolve(LoraChoice(name))


def test_a_missing_file_names_its_hash_and_near_matches(folder, files):
    write(folder / "watercolour.safetensors", 1)
    with pytest.raises(LoraError) as caught:
        files.resolve(LoraChoice("watercolor.safetensors", "ab" * 32))
    assert "ab" * 32 in str(caught.value)
    assert "watercolour.safetensors" in str(caught.value)


def test_an_error_about_a_file_holds_no_empty_fact(folder, files):
    with pytest.raises(LoraError) as caught:
        files.resolve(LoraChoice("nowhere"))
    assert caught.value.facts == {}
    write(folder / "x" / "a.safetensors", 1)
    write(folder / "y" / "a.safetensors", 2)
    with pytest.raises(LoraError) as caught:
        files.resolve(LoraChoice("a"))
    assert list(caught.value.facts) == ["Files of this name"]


def test_the_fingerprint_follows_the_file_and_never_raises(folder, files):
    assert files.fingerprint(LoraChoice("a")) == "missing:a"
    write(folder / "a.safetensors", 1)
    first = files.fingerprint(LoraChoice("a"))
    write(folder / "a.safetensors", 2)
    assert files.fingerprint(LoraChoice("a")) != first


def test_a_parsed_file_is_kept_until_it_changes(folder, files):
    write(folder / "a.safetensors", 1)
    first = files.load(LoraChoice("a"))
    assert files.load(LoraChoice("a.safetensors")) is first
    write(folder / "a.safetensors", 2)
    assert files.load(LoraChoice("a")) is not first
