"""The reader of safetensors against the library, and on files that break the format."""

import hashlib
import json
import os

import pytest
import safetensors
import safetensors.torch
import torch

from lora_workbench.lora_core.errors import (
    DamagedFileError,
    LoraError,
    UnsupportedFormatError,
)
from lora_workbench.lora_core.files.header import DTYPES
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.tensor_file import open_tensor_file

REAL = (
    "catundchat/pytorch_lora_weights.safetensors",
    "cloneofsimo-lora/analog_svd_rank4.safetensors",
    "cloneofsimo-lora/analog_svd_rank4.kohya.safetensors",
    "cloneofsimo-lora/analog_svd_rank4.peft.safetensors",
    "cloneofsimo-lora/lora_disney_inpainting.safetensors",
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def entry(start, stop, dtype="F32", shape=None):
    """Header entry of ``stop - start`` bytes, one dimension of 4-byte elements by default."""
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def make(path, header, data=b""):
    """Write a file whose header is an object or raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def library_accepts(path):
    try:
        with safetensors.safe_open(path, "pt"):
            return True
    except safetensors.SafetensorError:
        return False


def bits(tensor):
    """Bytes of a tensor, so that NaN equals itself and every dtype can be compared."""
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


def random_bits(dtype, shape, generator):
    count = torch.Size(shape).numel() * dtype.itemsize
    top = 2 if dtype is torch.bool else 256
    raw = torch.randint(top, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


@pytest.fixture
def saved(path, generator):
    """A file of the library with three tensors, and those tensors."""
    tensors = {
        "b.weight": torch.randn(5, 3, generator=generator),
        "a.weight": torch.randn(2, 7, generator=generator).half(),
        "a.alpha": torch.tensor(4.0),
    }
    safetensors.torch.save_file(tensors, path, {"format": "pt", "ss_name": "ü 😀"})
    return path, tensors


# ---- agreement with the library


@every_dtype
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 3, 5)], ids=str)
def test_a_tensor_of_the_library_comes_back_bit_for_bit(path, dtype, shape, generator):
    tensor = random_bits(dtype, shape, generator)
    safetensors.torch.save_file({"x": tensor}, path)
    read = open_safetensors(path).read("x")
    assert (read.dtype, read.shape) == (dtype, shape)
    assert bits(read) == bits(tensor)


def test_names_shapes_and_metadata_are_those_of_the_library(saved):
    path, tensors = saved
    file = open_safetensors(path)
    with safetensors.safe_open(path, "pt") as theirs:
        assert set(file.tensors) == set(theirs.keys())
        assert dict(file.metadata) == theirs.metadata()
    assert {key: info.shape for key, info in file.tensors.items()} == {
        key: tuple(tensor.shape) for key, tensor in tensors.items()
    }


def test_offsets_count_from_the_beginning_of_the_file(saved):
    path, tensors = saved
    info = open_safetensors(path).tensors["b.weight"]
    stored = path.read_bytes()[info.start : info.stop]
    assert stored == bytes(bits(tensors["b.weight"]))
    assert (info.nbytes, info.numel) == (60, 15)


@pytest.mark.parametrize("name", REAL)
def test_real_files_read_as_by_the_library(shared_data, name):
    path = shared_data / "real_files" / name
    file, theirs = open_safetensors(path), safetensors.torch.load_file(path)
    ours = file.read_many(file.tensors)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)
    with safetensors.safe_open(path, "pt") as handle:
        assert dict(file.metadata) == (handle.metadata() or {})


LENIENT = {
    "no tensors": (b"{}", b""),
    "metadata is null": ({"__metadata__": None, "a": entry(0, 4)}, b"1234"),
    "metadata is empty": ({"__metadata__": {}}, b""),
    "white space around": (b' {"a":%s}\n\t \r' % json.dumps(entry(0, 4)).encode(), b"1234"),
    "a field more": ({"a": {**entry(0, 4), "note": {"x": [1]}}}, b"1234"),
    "order of offsets differs": ({"b": entry(4, 8), "a": entry(0, 4)}, b"12345678"),
    "an empty tensor between": (
        {"a": entry(0, 4), "e": entry(4, 4), "b": entry(4, 8)},
        b"12345678",
    ),
    "not aligned": ({"u": entry(0, 1, "U8", [1]), "a": entry(1, 5)}, b"12345"),
}


@pytest.mark.parametrize(("header", "data"), LENIENT.values(), ids=LENIENT.keys())
def test_what_the_library_accepts_is_read_alike(path, header, data):
    make(path, header, data)
    theirs, file = safetensors.torch.load_file(path), open_safetensors(path)
    assert file.tensors.keys() == theirs.keys()
    for key in theirs:
        assert bits(file.read(key)) == bits(theirs[key])


# ---- damaged files

DAMAGED = {
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, b"123456789012", "overlap"),
    "hole": ({"a": entry(0, 4), "b": entry(8, 12)}, b"123456789012", "belong to no tensor"),
    "hole at the start": ({"a": entry(4, 8)}, b"12345678", "belong to no tensor"),
    "bytes left over": ({"a": entry(0, 4)}, b"12345", "after the last tensor"),
    "cut short": ({"a": entry(0, 8)}, b"1234567", "cut short"),
    "offset beyond the file": ({"a": entry(0, 2**40)}, b"1234", "cut short"),
    "offset beyond 64 bits": ({"a": entry(2**64, 2**64 + 4)}, b"1234", "offsets of a tensor"),
    "negative offset": ({"a": entry(-4, 0)}, b"1234", "offsets of a tensor"),
    "offsets reversed": ({"a": entry(4, 0, shape=[1])}, b"1234", "offsets of a tensor"),
    "three offsets": ({"a": {**entry(0, 4), "data_offsets": [0, 4, 4]}}, b"1234", "offsets of"),
    "offset is a float": ({"a": {**entry(0, 4), "data_offsets": [0.0, 4]}}, b"1234", "offsets of"),
    "offset is a bool": (
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [False, 1]}},
        b"1",
        "offsets of",
    ),
    "shape does not fit": ({"a": entry(0, 4, shape=[2])}, b"1234", "do not fit its shape"),
    "dtype does not fit": ({"a": entry(0, 4, "F16", [1])}, b"1234", "do not fit its shape"),
    "size is negative": ({"a": entry(0, 4, shape=[-1, -1])}, b"1234", "impossible shape"),
    "size is a bool": ({"a": entry(0, 4, shape=[True])}, b"1234", "impossible shape"),
    "size is a float": ({"a": entry(0, 4, shape=[1.0])}, b"1234", "impossible shape"),
    "shape is a number": ({"a": entry(0, 4, shape=1)}, b"1234", "impossible shape"),
    "product is 2**64": ({"a": entry(0, 0, shape=[2**31, 2**31, 1])}, b"", "impossible shape"),
    "product overflows": ({"a": entry(0, 0, shape=[2**62, 9, 0])}, b"", "impossible shape"),
    "dtype of no format": ({"a": entry(0, 4, "F33")}, b"1234", "does not know"),
    "dtype in lower case": ({"a": entry(0, 4, "f32")}, b"1234", "does not know"),
    "dtype is a number": ({"a": entry(0, 4, 32)}, b"1234", "does not know"),
    "dtype is a list": ({"a": entry(0, 4, ["F32"])}, b"1234", "does not know"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"1234", "not described by"),
    "entry is a number": ({"a": 4}, b"1234", "not described by"),
    "entry is text": ({"a": "dtype"}, b"1234", "not described by"),
    "metadata holds a number": ({"__metadata__": {"a": 1}}, b"", "more than text"),
    "metadata is a list": ({"__metadata__": []}, b"", "not an object"),
    "header is a list": (b"[]", b"", "not a JSON object"),
    "header is empty": (b"", b"", "not JSON"),
    "header is cut": (b'{"a":', b"", "not JSON"),
    "zero bytes after the header": (b"{}\0\0", b"", "not JSON"),
    "bad UTF-8": (b'{"\xff\xfe":{}}', b"", "not UTF-8"),
    "half a character": (b'{"\\ud800":%s}' % json.dumps(entry(0, 0)).encode(), b"", "half a char"),
    "number of 5,000 digits": (b'{"a":%s}' % (b"9" * 5000), b"", "not JSON"),
    "offsets of 4,000 digits": (
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[%s,%s]}}' % ((b"9" * 4000,) * 2),
        b"",
        "offsets of a tensor",
    ),
    "nested 100,000 deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "too deeply"),
}


@pytest.mark.parametrize(("header", "data", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_an_error_that_says_what_is_wrong(path, header, data, message):
    make(path, header, data)
    with pytest.raises(DamagedFileError, match=message) as caught:
        open_safetensors(path)
    assert caught.value.facts["file"] == path
    assert caught.value.fix
    assert not library_accepts(path)


STRICTER = {
    "a tensor twice": b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4)).encode(),) * 2),
    "a metadata key twice": b'{"__metadata__":{"k":"1","k":"2"},"a":%s}'
    % json.dumps(entry(0, 4)).encode(),
    "an entry as a list": b'{"a":["F32",[1],[0,4]]}',
    "65 dimensions": json.dumps({"a": entry(0, 4, shape=[1] * 65)}).encode(),
}


@pytest.mark.parametrize("header", STRICTER.values(), ids=STRICTER.keys())
def test_what_only_the_library_accepts(path, header):
    make(path, header, b"1234")
    assert library_accepts(path)
    with pytest.raises(DamagedFileError):
        open_safetensors(path)


def test_a_field_given_twice_is_refused(path):
    header = b'{"a":{"dtype":"F32","dtype":"U8","shape":[1],"data_offsets":[0,4]}}'
    with pytest.raises(DamagedFileError, match="twice") as caught:
        open_safetensors(make(path, header, b"1234"))
    assert caught.value.facts["name"] == "'dtype'"


def test_a_dtype_that_torch_cannot_hold_is_named(path):
    make(path, {"a": entry(0, 6, "F6_E2M3", [8])}, b"123456")
    with pytest.raises(UnsupportedFormatError, match="F6_E2M3"):
        open_safetensors(path)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_shorter_than_its_first_number(path, size):
    path.write_bytes(b"\0" * size)
    with pytest.raises(DamagedFileError, match="empty" if size == 0 else "first 8 bytes"):
        open_safetensors(path)


@pytest.mark.parametrize("length", [3, 2**31, 2**63, 2**64 - 1])
def test_a_header_length_that_lies(path, length):
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(DamagedFileError, match="end after the file"):
        open_safetensors(path)


def test_every_shorter_copy_of_a_file_is_refused(saved):
    path, _ = saved
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedFileError):
            open_safetensors(path)


def test_the_cap_on_the_header_counts_its_bytes(path):
    make(path, b"{}" + b" " * 98)
    assert not open_safetensors(path, max_header=100).tensors
    with pytest.raises(DamagedFileError, match="too long"):
        open_safetensors(path, max_header=99)


@pytest.mark.parametrize("filler", [b"[],", b'{"k":"v"},', b'"":1,'], ids=["[", "{", ":"])
def test_a_long_header_of_brackets_is_refused_before_it_is_parsed(path, filler):
    make(path, b'{"a":[' + filler * (2_000_000 // len(filler)))  # not JSON, which is not noticed
    with pytest.raises(DamagedFileError, match="no list of tensors"):
        open_safetensors(path)


def test_a_message_stays_short_whatever_the_file_holds(path):
    make(path, {"n" * 100_000: {"dtype": "d" * 100_000, "shape": [], "data_offsets": []}})
    with pytest.raises(DamagedFileError) as caught:
        open_safetensors(path)
    assert len(str(caught.value)) < 600 + len(str(path))


# ---- paths


def test_a_missing_file_names_its_neighbours(saved):
    path, _ = saved
    with pytest.raises(LoraError, match="does not exist") as caught:
        open_tensor_file(path.with_name("aa.safetensors"))
    assert caught.value.fix == "use 'a.safetensors'."


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(LoraError) as caught:
        open_tensor_file(tmp_path / "no" / "a.safetensors")
    assert caught.value.facts["the folder"] == "does not exist"


def test_a_folder_is_not_a_file(saved):
    path, _ = saved
    with pytest.raises(LoraError, match="this is a folder") as caught:
        open_safetensors(path.parent)
    assert caught.value.facts["safetensors files in it"] == "a.safetensors"


def test_an_unknown_ending_is_refused(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedFormatError, match=r"\.gguf"):
        open_tensor_file(path)


def test_endings_are_read_in_any_case(saved):
    path, tensors = saved
    path = path.rename(path.with_name("B.SafeTensors"))
    assert open_tensor_file(path).tensors.keys() == tensors.keys()


# ---- reading


def test_read_many_keeps_the_order_asked_for(saved):
    path, tensors = saved
    keys = ["b.weight", "a.alpha", "a.weight"]
    read = open_safetensors(path).read_many(keys)
    assert list(read) == keys
    for key in keys:
        torch.testing.assert_close(read[key], tensors[key], rtol=0, atol=0)


def test_each_read_gives_memory_of_its_own(saved):
    path, tensors = saved
    file = open_safetensors(path)
    file.read("b.weight").zero_()
    torch.testing.assert_close(file.read("b.weight"), tensors["b.weight"], rtol=0, atol=0)


def test_rows_are_those_of_the_whole(saved):
    path, tensors = saved
    file = open_safetensors(path)
    torch.testing.assert_close(file.read_rows("b.weight", 1, 4), tensors["b.weight"][1:4])
    assert file.read_rows("b.weight", 5, 5).shape == (0, 3)


@pytest.mark.parametrize(("key", "rows"), [("b.weight", (0, 6)), ("b.weight", (-1, 2)),
                                           ("b.weight", (3, 2)), ("a.alpha", (0, 0))])  # fmt: skip
def test_rows_outside_the_tensor_are_refused(saved, key, rows):
    path, _ = saved
    with pytest.raises(IndexError):
        open_safetensors(path).read_rows(key, *rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_copy_into_fills_any_tensor_of_the_shape(saved, dtype, transposed):
    path, tensors = saved
    out = torch.zeros(3, 5, dtype=dtype).T if transposed else torch.zeros(5, 3, dtype=dtype)
    open_safetensors(path).copy_into("b.weight", out)
    torch.testing.assert_close(out, tensors["b.weight"].to(dtype), rtol=0, atol=0)


def test_copy_into_a_view_leaves_the_rest_alone(saved):
    path, tensors = saved
    whole = torch.zeros(9, 3)
    open_safetensors(path).copy_into("b.weight", whole[2:7])
    torch.testing.assert_close(whole[2:7], tensors["b.weight"], rtol=0, atol=0)
    assert not whole[:2].any()
    assert not whole[7:].any()


def test_copy_into_another_shape_is_refused(saved):
    path, _ = saved
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        open_safetensors(path).copy_into("b.weight", torch.zeros(3, 5))


def test_the_hash_is_that_of_the_bytes(saved):
    path, _ = saved
    assert open_safetensors(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


# ---- files that change while in use


USES = {
    "read": lambda file: file.read("b.weight"),
    "read_many": lambda file: file.read_many(["a.alpha"]),
    "read_rows": lambda file: file.read_rows("b.weight", 0, 1),
    "copy_into": lambda file: file.copy_into("b.weight", torch.zeros(5, 3)),
    "sha256": lambda file: file.sha256(),
}
every_use = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


@every_use
def test_a_file_cut_while_in_use_is_an_error(saved, use):
    path, _ = saved
    file = open_safetensors(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(LoraError, match="changed on disk while in use"):
        use(file)


@every_use
def test_a_file_written_again_while_in_use_is_an_error(saved, use):
    path, _ = saved
    file = open_safetensors(path)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    with pytest.raises(LoraError, match="changed on disk while in use"):
        use(file)


@every_use
def test_a_file_removed_while_in_use_is_an_error(saved, use):
    path, _ = saved
    file = open_safetensors(path)
    path.unlink()
    with pytest.raises(LoraError, match="does not exist"):
        use(file)


def test_nothing_is_read_from_a_file_that_changed_before(saved):
    path, _ = saved
    file, out = open_safetensors(path), torch.zeros(5, 3)
    os.utime(path, ns=(0, 0))
    with pytest.raises(LoraError, match="changed on disk"):
        file.copy_into("b.weight", out)
    assert not out.any()


def test_a_file_changed_during_the_read_is_an_error(saved):
    path, _ = saved
    file = open_safetensors(path)
    with pytest.raises(LoraError, match="changed on disk"), file.opened():
        os.truncate(path, 8)
