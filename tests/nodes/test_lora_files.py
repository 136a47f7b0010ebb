"""Names in rows against files on disk: exact, other separators, moved, renamed, missing."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lora_workbench.hosts import hash_store
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
    size = (folder / "b.safetensors").stat().st_size
    assert files.resolve(LoraChoice("a.safetensors", digest, size)) == "b.safetensors"


def test_another_content_under_the_pinned_name_is_an_error(folder, files):
    write(folder / "a.safetensors", 1)
    with pytest.raises(LoraError, match="not the file this row was made with"):
        files.resolve(LoraChoice("a.safetensors", "0" * 64))


def hashed_files(monkeypatch):
    """Names of the files that are read for their hash from now on."""
    hashed = []
    original = hash_store.hash_file
    monkeypatch.setattr(
        hash_store, "hash_file", lambda path, s: hashed.append(path.name) or original(path, s)
    )
    return hashed


def test_only_files_of_the_pinned_size_are_hashed(folder, files, monkeypatch):
    digest = write(folder / "a.safetensors", 1)
    (folder / "big.safetensors").write_bytes(b"x" * 5000)
    hashed = hashed_files(monkeypatch)
    size = (folder / "a.safetensors").stat().st_size
    assert files.resolve(LoraChoice("gone.safetensors", digest, size)) == "a.safetensors"
    assert hashed == ["a.safetensors"]


def test_without_a_size_a_few_files_of_the_name_are_hashed_and_known_hashes_count(
    folder, files, monkeypatch
):
    wanted = write(folder / "new" / "a.safetensors", 1)
    other = write(folder / "b.safetensors", 2)
    hashed = hashed_files(monkeypatch)
    for number in range(20):
        write(folder / "same" / str(number) / "adapter_model.safetensors", number)
    assert files.resolve(LoraChoice("old/a.safetensors", wanted)) == "new/a.safetensors"
    assert hashed == ["a.safetensors"]
    with pytest.raises(LoraError, match=r"missing(.|\n)*no size is pinned"):
        files.resolve(LoraChoice("gone.safetensors", other))
    assert hashed == ["a.safetensors"]
    files.pin(LoraChoice("b"))
    assert files.resolve(LoraChoice("gone.safetensors", other.upper())) == "b.safetensors"
    with pytest.raises(LoraError, match="missing"):
        files.resolve(LoraChoice("adapter_model.safetensors", "0" * 64))
    assert len(hashed) <= 2 + 8


def test_a_known_hash_of_a_file_that_changed_does_not_count(folder, files):
    before = write(folder / "b.safetensors", 2)
    files.pin(LoraChoice("b"))
    write(folder / "b.safetensors", 3)
    with pytest.raises(LoraError, match="missing"):
        files.resolve(LoraChoice("gone.safetensors", before))


@pytest.mark.parametrize("sha256", ["0" * 63, "0" * 65, "x" * 64, "0" * 64 + "\n", "ABCDEF1234"])
def test_a_hash_that_is_none_is_refused(folder, files, sha256):
    write(folder / "a.safetensors", 1)
    with pytest.raises(LoraError, match="not 64 hexadecimal digits"):
        files.resolve(LoraChoice("a.safetensors", sha256))
    assert files.fingerprint(LoraChoice("a.safetensors", sha256)).startswith("missing")


def test_an_empty_hash_pins_nothing(folder, files):
    write(folder / "a.safetensors", 1)
    assert files.resolve(LoraChoice("a.safetensors", "")) == "a.safetensors"


def test_a_file_that_is_asked_for_by_several_is_read_once(folder, tmp_path, monkeypatch):
    reads, together = [], threading.Barrier(3)
    original = hash_store.hash_file

    def slow(path, stamp):
        reads.append(path.name)
        if path.name != "a.safetensors":
            together.wait(10)  # several files at once
        time.sleep(0.05)
        return original(path, stamp)

    monkeypatch.setattr(hash_store, "hash_file", slow)
    paths = [folder / f"{name}.safetensors" for name in "abcd"]
    wanted = [write(path, number) for number, path in enumerate(paths)]
    store = HashStore(tmp_path / "h.sqlite")
    asked = [0] * 4 + [1, 2, 3]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: store.sha256(paths[at]), asked))
    assert found == [wanted[at] for at in asked]
    assert sorted(reads) == [path.name for path in paths]


def test_a_hash_is_computed_once_until_the_file_changes(folder, tmp_path, monkeypatch):
    calls = hashed_files(monkeypatch)
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
