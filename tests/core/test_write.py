"""The writer of safetensors: files that the library reads, and all of a file or nothing."""

import json
import os

import pytest
import safetensors
import safetensors.torch
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.files import write
from lora_workbench.lora_core.files.header import DTYPES
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import SafetensorsWriter, write_safetensors

every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
LAYOUT = {"b": (torch.float32, (5, 3)), "a": (torch.float16, (2, 7)), "s": (torch.float32, ())}


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


@pytest.fixture
def tensors(generator):
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, (dtype, shape) in LAYOUT.items()
    }


def files_in(path):
    return sorted(p.name for p in path.parent.iterdir())


# ---- what is written


@every_dtype
@pytest.mark.parametrize("shape", [(), (0,), (2, 3, 5)], ids=str)
def test_the_library_reads_what_we_write_bit_for_bit(path, dtype, shape, generator):
    count = torch.Size(shape).numel() * dtype.itemsize
    top = 2 if dtype is torch.bool else 256
    raw = torch.randint(top, (count,), dtype=torch.uint8, generator=generator)
    tensor = raw.view(dtype).reshape(shape)
    write_safetensors(path, {"x": tensor})
    with safetensors.safe_open(path, "pt") as file:
        read = file.get_tensor("x")
    assert (read.dtype, tuple(read.shape)) == (dtype, shape)
    assert bits(read) == bits(tensor)


def test_metadata_reaches_the_library(path, tensors):
    metadata = {"ss_name": 'ü 😀 "quoted"\n', "format": "pt", "": ""}
    write_safetensors(path, tensors, metadata)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == metadata


def test_bytes_equal_those_of_the_library(path, generator):
    """One element type and at most one metadata entry, where the library has one order too."""
    tensors = {name: torch.randn(3, 5, generator=generator) for name in ("b", "a", "ü")}
    write_safetensors(path, tensors, {"format": "pt"})
    assert path.read_bytes() == safetensors.torch.save(tensors, {"format": "pt"})


def test_equal_input_gives_equal_bytes_in_any_order(path, tensors):
    write_safetensors(path, tensors, {"x": "1", "y": "2"})
    first = path.read_bytes()
    write_safetensors(path, dict(reversed(tensors.items())), {"y": "2", "x": "1"}, overwrite=True)
    assert path.read_bytes() == first


def test_every_tensor_is_aligned_to_its_element(path, generator):
    dtypes = [torch.uint8, torch.float64, torch.float16, torch.float32]
    write_safetensors(path, {f"{i}{d}": torch.ones(3, dtype=d) for i in (0, 1) for d in dtypes})
    for info in open_safetensors(path).tensors.values():
        assert info.start % info.dtype.itemsize == 0


@pytest.mark.parametrize("length", range(9))
def test_the_data_begins_at_a_multiple_of_8(path, length):
    write_safetensors(path, {"n" * length: torch.ones(2)})
    assert open_safetensors(path).data_start % 8 == 0


def test_strided_tensors_and_gradients_are_written_by_value(path, generator):
    weight = torch.randn(3, 5, generator=generator, requires_grad=True)
    write_safetensors(path, {"t": weight.T, "row": weight[1], "wide": weight[:1].expand(4, 5)})
    read = safetensors.torch.load_file(path)
    torch.testing.assert_close(read["t"], weight.detach().T, rtol=0, atol=0)
    torch.testing.assert_close(read["wide"], weight.detach()[:1].expand(4, 5), rtol=0, atol=0)


def test_a_conjugate_view_is_written_by_value(path, generator):
    tensor = torch.randn(3, dtype=torch.complex64, generator=generator)
    write_safetensors(path, {"c": tensor.conj()})
    torch.testing.assert_close(open_safetensors(path).read("c"), torch.conj_physical(tensor))


def test_the_writer_keeps_the_order_of_its_layout(path, tensors):
    with SafetensorsWriter(path, LAYOUT) as writer:
        for name in reversed(LAYOUT):
            writer.write(name, tensors[name])
    file = open_safetensors(path)
    assert list(file.tensors) == list(LAYOUT)
    assert [i.start for i in file.tensors.values()] == sorted(
        i.start for i in file.tensors.values()
    )
    torch.testing.assert_close(safetensors.torch.load_file(path), tensors, rtol=0, atol=0)


def test_pieces_in_any_order_make_the_whole(path):
    whole = torch.arange(15.0).reshape(5, 3)
    with SafetensorsWriter(path, {"b": (torch.float32, (5, 3))}) as writer:
        writer.write("b", whole[3:], 36)
        writer.write("b", whole[:3])
    torch.testing.assert_close(safetensors.torch.load_file(path)["b"], whole, rtol=0, atol=0)


def test_no_tensors_make_a_file(path):
    write_safetensors(path, {})
    assert safetensors.torch.load_file(path) == {}


@pytest.mark.skipif(os.name == "nt", reason="no umask")
def test_the_file_has_the_permissions_of_any_new_file(path, tensors):
    write_safetensors(path, tensors)
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


# ---- copying from a file

KERNELS = ["as here", "no copy_file_range", "copy_file_range fails", "copy_file_range stops"]


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """The kernel's copy as it is here, absent, failing, and stopping at the end of file."""

    def fails(*_):
        raise OSError(18, "Invalid cross-device link")

    if request.param == "no copy_file_range":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif request.param == "copy_file_range fails":
        monkeypatch.setattr(os, "copy_file_range", fails, raising=False)
    elif request.param == "copy_file_range stops":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)


@pytest.mark.parametrize("buffer", [7, 1 << 20])
def test_copied_bytes_are_the_same_bytes(path, tensors, kernel, buffer, monkeypatch):
    monkeypatch.setattr(write, "_COPY_BUFFER", buffer)
    write_safetensors(path, tensors)
    source = open_safetensors(path)
    target = path.with_name("b.safetensors")
    with SafetensorsWriter(target, LAYOUT) as writer:
        for name, info in source.tensors.items():
            half = info.nbytes // 2
            writer.copy_range(source, info.start + half, name, info.nbytes - half, half)
            writer.copy_range(source, info.start, name, half)
    torch.testing.assert_close(safetensors.torch.load_file(target), tensors, rtol=0, atol=0)


def test_a_range_beyond_the_source_is_an_error(path, tensors, kernel):
    write_safetensors(path, tensors)
    source = open_safetensors(path)
    target = path.with_name("b.safetensors")
    with pytest.raises(LoraError, match="changed on disk"), SafetensorsWriter(
        target, {"x": (torch.uint8, (100,))}
    ) as writer:  # fmt: skip
        writer.copy_range(source, path.stat().st_size - 50, "x", 100)
    assert files_in(path) == ["a.safetensors"]


def test_a_source_that_changed_is_an_error(path, tensors):
    write_safetensors(path, tensors)
    source = open_safetensors(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(LoraError, match="changed on disk"), SafetensorsWriter(
        path.with_name("b.safetensors"), {"x": (torch.uint8, (1,))}
    ) as writer:  # fmt: skip
        writer.copy_range(source, 0, "x", 1)
    assert files_in(path) == ["a.safetensors"]


def test_writing_works_without_pwrite(path, tensors, monkeypatch):
    monkeypatch.delattr(os, "pwrite", raising=False)
    write_safetensors(path, tensors)
    torch.testing.assert_close(safetensors.torch.load_file(path), tensors, rtol=0, atol=0)


def test_short_writes_are_continued(path, tensors, monkeypatch):
    whole_write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole_write(fd, data[:5], at))
    write_safetensors(path, tensors)
    torch.testing.assert_close(safetensors.torch.load_file(path), tensors, rtol=0, atol=0)


# ---- all or nothing


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit, GeneratorExit])
@pytest.mark.parametrize("exists", [True, False])
def test_an_exception_leaves_no_trace(path, tensors, error, exists):
    if exists:
        path.write_bytes(b"before")
    with pytest.raises(error), SafetensorsWriter(path, LAYOUT, overwrite=True) as writer:
        writer.write("b", tensors["b"])
        raise error
    assert files_in(path) == ["a.safetensors"] * exists
    assert not exists or path.read_bytes() == b"before"


@pytest.mark.parametrize("call", ["ftruncate", "pwrite", "fsync"])
def test_an_interrupt_inside_a_system_call_leaves_no_trace(path, tensors, call, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    path.write_bytes(b"before")
    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, tensors, overwrite=True)
    assert files_in(path) == ["a.safetensors"]
    assert path.read_bytes() == b"before"


def test_the_target_is_untouched_until_the_end(path, tensors):
    path.write_bytes(b"before")
    with SafetensorsWriter(path, LAYOUT, overwrite=True) as writer:
        for name in LAYOUT:
            writer.write(name, tensors[name])
        assert path.read_bytes() == b"before"
        hidden = [name for name in files_in(path) if name != path.name]
        assert [name[0] for name in hidden] == ["."]
    assert files_in(path) == ["a.safetensors"]
    torch.testing.assert_close(safetensors.torch.load_file(path), tensors, rtol=0, atol=0)


def test_an_existing_file_is_kept_unless_overwriting_is_asked_for(path, tensors):
    path.write_bytes(b"before")
    with pytest.raises(LoraError, match="of this name exists"):
        write_safetensors(path, tensors)
    assert path.read_bytes() == b"before"
    assert files_in(path) == ["a.safetensors"]


def test_a_file_that_appears_meanwhile_is_kept(path, tensors):
    with pytest.raises(LoraError, match="of this name exists"), SafetensorsWriter(
        path, {"b": LAYOUT["b"]}
    ) as writer:  # fmt: skip
        writer.write("b", tensors["b"])
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert files_in(path) == ["a.safetensors"]


def test_a_folder_is_never_replaced(path, tensors):
    path.mkdir()
    with pytest.raises(LoraError, match="a folder of this name"):
        write_safetensors(path, tensors, overwrite=True)


def test_a_missing_folder_is_an_error(path, tensors):
    with pytest.raises(LoraError, match="folder to write to does not exist"):
        write_safetensors(path.parent / "no" / "a.safetensors", tensors)


def test_a_tensor_left_out_is_an_error(path, tensors):
    with pytest.raises(ValueError, match="a lacks 28 B"), SafetensorsWriter(path, LAYOUT) as writer:
        writer.write("b", tensors["b"])
        writer.write("s", tensors["s"])
    assert files_in(path) == []


WRONG = {
    "dtype": (torch.ones(5, 3).half(), 0, "declared torch.float32"),
    "strides": (torch.ones(3, 5).T, 0, "contiguous CPU"),
    "device": (torch.ones(5, 3, device="meta"), 0, "contiguous CPU"),
    "too long": (torch.ones(6, 3), 0, r"b: bytes 0 \+ 72 of 60"),
    "beyond the end": (torch.ones(1), 60, r"b: bytes 60 \+ 4 of 60"),
    "before the start": (torch.ones(1), -4, r"b: bytes -4 \+ 4 of 60"),
}


@pytest.mark.parametrize(("data", "offset", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_piece_that_does_not_fit_is_refused(path, data, offset, message):
    with pytest.raises(ValueError, match=message), SafetensorsWriter(path, LAYOUT) as writer:
        writer.write("b", data, offset)
    assert files_in(path) == []


# ---- headers that cannot be written


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": None}], ids=str)
def test_metadata_that_is_not_text_is_refused(path, tensors, metadata):
    with pytest.raises(LoraError, match="metadata must be text"):
        write_safetensors(path, tensors, metadata)


def test_names_that_no_file_can_hold_are_refused(path):
    with pytest.raises(LoraError, match="half a character"):
        write_safetensors(path, {"\ud800": torch.ones(1)})
    with pytest.raises(LoraError, match="__metadata__"):
        write_safetensors(path, {"__metadata__": torch.ones(1)})


def test_a_dtype_without_a_name_is_refused(path):
    with pytest.raises(LoraError, match="complex128"):
        write_safetensors(path, {"a": torch.ones(1, dtype=torch.complex128)})


def test_a_header_that_could_not_be_read_again_is_refused(path, tensors):
    with pytest.raises(LoraError, match="too long to be read again"):
        write_safetensors(path, tensors, {"a": "x" * (8 << 20)})
    assert files_in(path) == []


def test_the_header_is_compact_json_in_order(path):
    write_safetensors(path, {"ü": torch.ones(1)}, {"b": "2", "a": "1"})
    raw = path.read_bytes()
    text = raw[8 : 8 + int.from_bytes(raw[:8], "little")].decode()
    expected = {
        "__metadata__": {"a": "1", "b": "2"},
        "ü": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    assert text.rstrip(" ") == json.dumps(expected, ensure_ascii=False, separators=(",", ":"))
