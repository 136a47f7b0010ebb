"""The undo rungs one by one, and the record of words that a computed undo gets wrong."""

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.patching import fused, room
from lora_workbench.lora_core.patching.base_file import CheckpointRows, base_files
from lora_workbench.lora_core.patching.checksum import checksum
from lora_workbench.lora_core.patching.exceptions import find_exceptions, put_exceptions
from lora_workbench.lora_core.patching.fused import fuse
from lora_workbench.lora_core.patching.ledger import MergeLedger
from lora_workbench.lora_core.patching.products import cpu_threads, exact_products
from lora_workbench.lora_core.patching.residual import ResidualUndo
from lora_workbench.lora_core.patching.undo import FileUndo, FullUndo
from lora_workbench.lora_core.stack import StackItem, make_plan

from .toy_model import MERGEABLE, bits, normal, one_weight_table, thin_tensors, toy_lora

every_dtype = pytest.mark.parametrize("dtype", MERGEABLE, ids=str)


def lora_of(shape, generator, rank=3, std=0.2, name="m"):
    return lora_from_tensors("x", thin_tensors(name, shape, rank, generator, std))


def terms_of(lora, shape, strength=1.0):
    return make_plan([StackItem(lora, strength)], one_weight_table("m", shape)).terms["m"]


def fuser(shape):
    return lambda terms: fuse(terms, shape, lambda term: term.lora.adapter(term.module, term.part))


@pytest.mark.parametrize("share", [0, 0.001, 0.08, 0.09, 0.5, 1], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("length", [1, 9, 65_536, 200_003], ids=str)
def test_exceptions_bring_the_base_back(length, dtype, share, generator):
    base = torch.randint(0, 127, (length,), generator=generator).to(dtype)
    differs = torch.rand(length, generator=generator) < share
    back = torch.where(differs, base + 1, base)
    exceptions = find_exceptions(base, back)
    put_exceptions(back, exceptions)
    assert torch.equal(back, base)
    assert exceptions.words.numel() == differs.sum()


def test_exceptions_take_16_bits_each_when_few_and_a_bitmap_when_many():
    base = torch.zeros(65_536 * 2, dtype=torch.int16)
    few, many = base.clone(), base.clone()
    few[::100] = 1
    many[::10] = 1
    assert find_exceptions(base, few).nbytes() == 1311 * (2 + 2) + 2 * 4
    assert find_exceptions(base, many).nbytes() == 13_108 * 2 + 65_536 * 2 // 8


def test_negative_zero_and_nan_are_exceptions_by_their_bits():
    base = torch.tensor([-0.0, 0.0, float("nan")]).view(torch.int32)
    back = torch.tensor([0.0, 0.0, float("nan")]).view(torch.int32)
    assert find_exceptions(base, back).words.tolist() == [-(2**31)]


def records(weight, path):
    write_safetensors(path, {"m": weight.clone()})
    file = FileUndo(weight, CheckpointRows(open_safetensors(path), "m"))
    assert file.problem() is None
    return {"full": FullUndo.of(weight), "file": file, "residual": ResidualUndo(weight, 1)}


@every_dtype
@pytest.mark.parametrize("rung", ["full", "file", "residual"])
def test_a_record_leads_from_any_terms_to_any_other(rung, dtype, generator, tmp_path, monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 40)
    shape = (12, 9)
    weight = normal(shape, generator, 0.5, dtype)
    base = bits(weight)
    record = records(weight, tmp_path / "base.safetensors")[rung]
    lora, other = lora_of(shape, generator), lora_of(shape, generator, 2)
    seen = {}
    path = [(lora, 1.0), (lora, -0.5), (other, 1.0), None, (lora, -0.5), (lora, 1.0), None]
    for step in path:
        terms = terms_of(step[0], shape, step[1]) if step else ()
        record.write(terms, fuser(shape))
        record.terms, record.whole = terms, True
        now = bits(weight)
        assert torch.equal(now, base if step is None else seen.setdefault(step, now))
    assert len({tuple(found.flatten().tolist()) for found in seen.values()}) == 3
    assert int(record.checksum) == int(checksum(base.view(dtype)))


@every_dtype
def test_values_that_addition_swallows_come_back_from_a_residual(dtype, generator):
    """Zeros of both signs, infinities, NaN, the largest and the smallest number of the dtype."""
    shape = (4, 8)
    weight = normal(shape, generator, 0.5, dtype)
    kind = torch.finfo(dtype)
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), kind.max, kind.tiny, -kind.max]
    weight[1] = torch.tensor(special).to(dtype)
    base, record = bits(weight), ResidualUndo(weight, 1)
    terms = terms_of(lora_of(shape, generator, std=20.0), shape)
    record.write(terms, fuser(shape))
    assert not torch.equal(bits(weight), base)
    record.terms, record.whole = terms, True
    record.write((), fuser(shape))
    assert torch.equal(bits(weight), base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_residual_of_a_16_bit_weight_takes_at_most_a_fifth_of_a_copy(dtype, generator):
    """Base N(0, 0.03 ** 2), a delta of at most a fifth of its size."""
    shape = (320, 320)
    weight = normal(shape, generator, 0.03, dtype)
    lora = lora_of(shape, generator, 4, 0.05)
    update = fuser(shape)(terms_of(lora, shape))
    rho = update.delta(0, *shape).norm() / weight.float().norm()
    terms = terms_of(lora, shape, 0.2 / float(rho))
    record = ResidualUndo(weight, 1)
    record.write(terms, fuser(shape))
    assert record.nbytes() <= 0.2 * weight.numel() * weight.element_size()


def test_the_sizes_are_those_of_the_tensors(generator, tmp_path):
    weight = normal((12, 9), generator, 0.5, torch.float16)
    found = records(weight, tmp_path / "base.safetensors")
    assert found["full"].nbytes() == 12 * 9 * 2
    assert found["file"].nbytes() == 0
    assert found["residual"].nbytes() == 0


def test_a_checkpoint_of_another_dtype_is_compared_as_it_was_loaded(generator, tmp_path):
    stored = normal((6, 4), generator)
    write_safetensors(tmp_path / "base.safetensors", {"m": stored})
    rows = CheckpointRows(open_safetensors(tmp_path / "base.safetensors"), "m")
    assert FileUndo(stored.half(), rows).problem() is None
    assert FileUndo(stored.bfloat16(), rows).problem() is None
    assert "bits" in FileUndo(stored.bfloat16().half(), rows).problem()


def test_a_storage_can_be_rows_of_a_fused_tensor_in_the_checkpoint(generator, tmp_path):
    stored = normal((9, 4), generator)
    write_safetensors(tmp_path / "base.safetensors", {"qkv": stored})
    file = open_safetensors(tmp_path / "base.safetensors")
    assert FileUndo(stored[3:6].clone(), CheckpointRows(file, "qkv", 3)).problem() is None
    assert "bits" in FileUndo(stored[3:6].clone(), CheckpointRows(file, "qkv", 2)).problem()


@pytest.mark.parametrize("shape", [(7, 4), (6, 5), (6, 4, 1, 1), (24,)], ids=str)
def test_a_checkpoint_of_another_shape_proves_nothing(shape, generator, tmp_path):
    weight = torch.zeros(shape)
    write_safetensors(tmp_path / "base.safetensors", {"m": torch.zeros(6, 4)})
    rows = CheckpointRows(open_safetensors(tmp_path / "base.safetensors"), "m")
    assert FileUndo(weight, rows).problem() is not None
    gone = CheckpointRows(rows.file, "another name")
    assert "read" in FileUndo(weight, gone).problem()


def test_base_files_has_every_tensor_of_the_checkpoint(generator, tmp_path):
    weights = {"a": normal((2, 3), generator), "b": normal((4,), generator)}
    write_safetensors(tmp_path / "base.safetensors", weights)
    files = base_files(open_safetensors(tmp_path / "base.safetensors"))
    assert files.keys() == weights.keys()
    assert torch.equal(files["b"].read_rows(1, 3), weights["b"][1:3])


def test_auto_copies_while_there_is_room_and_computes_from_there_on(generator, monkeypatch):
    weights = {key: normal((7, 5), generator) for key in ("linear.weight", "other")}
    plan = make_plan(
        [StackItem(toy_lora("a", {"linear": 2}, generator, extras=False))],
        one_weight_table_as("linear", "linear.weight"),
    )
    for free, rung in ((14 * 10 + 139, "residual"), (14 * 10 + 141, "full")):
        monkeypatch.setattr(room, "free_bytes", lambda _, free=free: (free, 1400))
        ledger = MergeLedger(weights)
        ledger.apply(plan)
        assert ledger.rungs() == {rung: 1}
        ledger.unmerge()


def one_weight_table_as(name, key):
    table = one_weight_table(key, (7, 5))
    table.targets[name] = table.targets.pop(key)
    return table


def test_room_is_counted_down(monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda _: (1000, 1000))
    left, device = room.Room(), torch.device("cpu")
    assert [left.take(device, 500), left.take(device, 401), left.take(device, 400)] == [
        True,
        False,
        True,
    ]
    monkeypatch.setattr(room, "free_bytes", lambda _: None)
    assert room.Room().take(device, 1 << 60)


def test_free_memory_of_this_machine_is_below_its_total():
    free, total = room.free_bytes(torch.device("cpu"))
    assert 0 < free <= total


def test_threads_are_put_back_after_an_exception():
    found = torch.get_num_threads()
    with pytest.raises(LoraError), cpu_threads(found + 1):
        assert torch.get_num_threads() == found + 1
        raise LoraError("x")
    assert torch.get_num_threads() == found


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_exact_inside_and_the_setting_comes_back(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        with pytest.raises(LoraError), exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
            raise LoraError("x")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
def test_products_are_exact_where_only_one_backend_was_set():
    matmul = torch.backends.cuda.matmul
    found, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        with exact_products():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = found


def test_autocast_does_not_reach_the_products(generator):
    a, b = normal((4, 5), generator), normal((5, 3), generator)
    with torch.autocast("cpu", torch.bfloat16), exact_products():
        assert torch.equal(a @ b, torch.mm(a, b))
        assert (a @ b).dtype == torch.float32
