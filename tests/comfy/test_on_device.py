"""Merge Into Model on the patchers themselves: records, readers, failures, baking."""

import importlib
import json
import logging
import zlib

import pytest
import torch

from .checkpoints import SLIM, attention_targets, lora_targets, write_lora
from .conftest import same_values

ALL, SOME = "on_device_all.safetensors", "on_device_some.safetensors"
NAMES_FILES = pytest.mark.comfyui("0.30", "a MODEL does not say which file it came from")
FILE = pytest.param("file", marks=NAMES_FILES)
RUNGS = ["auto", "residual", FILE, "full"]
KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def loras(comfy, slim_checkpoint):
    """A LoRA for every weight, and one for attention alone."""
    targets = lora_targets(SLIM)
    write_lora(comfy.loras_dir / ALL, targets, rank=4, seed=21)
    write_lora(comfy.loras_dir / SOME, attention_targets(targets), rank=8, seed=22)


@pytest.fixture(scope="module")
def loaded(slim_checkpoint):
    """MODEL and CLIP of the slim checkpoint."""
    import nodes

    with torch.inference_mode():
        return nodes.CheckpointLoaderSimple().load_checkpoint(slim_checkpoint)[:2]


@pytest.fixture(scope="module")
def base(loaded):
    """Copies of the model's weights right after loading."""
    return state_of(loaded[0])


@pytest.fixture(autouse=True)
def the_base_comes_back(comfy, loaded, base):
    """After every test the model is as right after loading."""
    yield
    from comfy import model_management

    model_management.unload_all_models()
    assert loaded[0].backup == {}
    assert_equal(state_of(loaded[0]), base)


def state_of(patcher):
    return {key: value.clone() for key, value in patcher.model.state_dict().items()}


def assert_equal(state, expected):
    assert state.keys() == expected.keys()
    different = [key for key in state if not same_values(state[key], expected[key])]
    assert different == []


def run(node_id, *args, **inputs):
    import nodes

    with torch.inference_mode():
        return nodes.NODE_CLASS_MAPPINGS[node_id]().execute(*args, **inputs)["result"]


def merge(model, *loras, **inputs):
    """MODEL of Merge Into Model; loras are (name, strength)."""
    stack = [(name, strength, strength) for name, strength in loras]
    return run("LoraWorkbenchMerge", model, stack, **inputs)[0]


def receipt(model, *loras, **inputs):
    stack = [(name, strength, strength) for name, strength in loras]
    return run("LoraWorkbenchMerge", model, stack, **inputs)[2]


def apply(model, *loras):
    rows = [{"name": name, "model": strength} for name, strength in loras]
    return run("LoraWorkbenchApply", model, json.dumps(rows), mode="merge")[0]


def load(patcher):
    from comfy import model_management

    with torch.inference_mode():
        model_management.load_models_gpu([patcher])
    return patcher


def full_size(patcher):
    """Bytes that ComfyUI's own backup of the patched weights takes."""
    state = patcher.model.state_dict()
    return sum(state[key].nelement() * state[key].element_size() for key in patcher.patches)


def records(patcher):
    return {k: b for k, b in patcher.backup.items() if type(b).__name__ == "MergedWeight"}


def pack_module(comfy, name):
    return importlib.import_module(f"{comfy.pack.__name__}.{name}")


@pytest.mark.parametrize("undo", RUNGS)
def test_a_merge_writes_the_weights_of_apply_and_keeps_records_alone(loaded, loras, undo):
    applied = state_of(load(apply(loaded[0], (ALL, 0.8), (SOME, -0.5))))
    merged = load(merge(loaded[0], (ALL, 0.8), (SOME, -0.5), undo=undo))
    assert records(merged).keys() == merged.backup.keys() == merged.patches.keys()
    state = state_of(merged)
    if undo == "residual":  # adds the product, not in the same instruction: another last bit
        for key, value in state.items():
            torch.testing.assert_close(value, applied[key], rtol=1e-6, atol=1e-7, msg=key)
    else:
        assert_equal(state, applied)


@pytest.mark.parametrize(
    ("undo", "least", "most"), [pytest.param("file", 0, 0, marks=NAMES_FILES), ("full", 1, 1)]
)
def test_the_memory_of_the_backups_is_that_of_the_rung(loaded, loras, undo, least, most):
    merged = load(merge(loaded[0], (ALL, 1.0), undo=undo))
    assert records(merged).keys() == merged.patches.keys()
    kept = sum(record.nbytes() for record in records(merged).values())
    assert least * full_size(merged) <= kept <= most * full_size(merged)


@NAMES_FILES
def test_a_published_lora_keeps_a_fifth_of_a_copy_as_residual_and_nothing_with_the_file(
    comfy, shared_data, full_checkpoint
):
    import nodes

    name = "analog_svd_rank4.kohya.safetensors"
    link = comfy.loras_dir / name
    if not link.exists():
        link.symlink_to(shared_data / "real_files" / "cloneofsimo-lora" / name)
    with torch.inference_mode():
        model = nodes.CheckpointLoaderSimple().load_checkpoint(full_checkpoint)[0]
    before = digests(model)
    for undo, most in (("residual", 0.2), ("file", 0)):
        merged = load(merge(model, (name, 1.0), undo=undo))
        assert records(merged).keys() == merged.backup.keys() == merged.patches.keys()
        kept = sum(record.nbytes() for record in records(merged).values())
        assert kept <= most * full_size(merged)
        merged.detach()
        assert digests(model) == before


@pytest.mark.parametrize("rho", [0.002, 0.09])
@pytest.mark.parametrize(
    ("undo", "most"), [("residual", 0.2), pytest.param("file", 0, marks=NAMES_FILES)]
)
def test_a_lora_as_large_as_a_published_one_keeps_as_little(comfy, loaded, base, undo, most, rho):
    """Published rank-4 files have ``||delta|| / ||W||`` 0.002, 0.015 and 0.09 (medians)."""
    rank, name = 4, f"on_device_rho_{rho}.safetensors"
    targets = attention_targets(lora_targets(SLIM))
    write_lora(comfy.loras_dir / name, targets, rank=rank, seed=23, scale=rho / rank**0.5)
    merged = load(merge(loaded[0], (name, 1.0), undo=undo))
    assert records(merged).keys() == merged.backup.keys() == merged.patches.keys()
    carried = state_of(merged)
    sizes = [float((carried[k] - base[k]).norm() / base[k].norm()) for k in merged.patches]
    assert rho / 1.5 < min(sizes) <= max(sizes) < rho * 1.5
    kept = sum(record.nbytes() for record in records(merged).values())
    assert kept <= most * full_size(merged)


def digests(patcher):
    """A hash of each weight's bits: copies of a whole SD1.5 would take 3 GB more."""
    state = patcher.model.state_dict()
    return {key: zlib.crc32(value.contiguous().numpy()) for key, value in state.items()}


@pytest.mark.parametrize("undo", RUNGS)
def test_every_reader_of_a_backup_sees_the_base(loaded, loras, base, undo):
    merged = load(merge(loaded[0], (ALL, 1.0), undo=undo))
    carried = state_of(merged)
    with torch.inference_mode():
        read = {key: patches[0][0].clone() for key, patches in merged.get_key_patches().items()}
    assert_equal(read, base)
    assert_equal(state_of(merged), carried)
    with torch.inference_mode():
        merged.partially_unload(merged.offload_device, memory_to_free=full_size(merged) // 2)
    restored = merged.patches.keys() - merged.backup.keys()
    assert restored and merged.backup
    state = state_of(merged)
    assert all(torch.equal(state[key], base[key]) for key in restored)
    assert all(torch.equal(state[key], carried[key]) for key in merged.backup)


@pytest.mark.parametrize("undo", RUNGS)
def test_another_branch_that_loads_sees_the_base_and_the_merge_comes_back(
    loaded, loras, base, undo
):
    merged = load(merge(loaded[0], (ALL, 1.0), undo=undo))
    carried = state_of(merged)
    assert_equal(state_of(load(loaded[0].clone())), base)
    assert loaded[0].backup == {}
    assert_equal(state_of(load(merged)), carried)


def test_a_restored_weight_may_be_read_outside_inference_mode(loaded, loras, base):
    """As /free does, from another thread than the executor's."""
    merged = load(merge(loaded[0], (ALL, 1.0), undo="residual"))
    merged.unpatch_model(merged.offload_device)
    assert_equal(state_of(merged), base)


def test_one_strength_changes_only_its_weights(loaded, loras, adapter_calls):
    load(merge(loaded[0], (ALL, 1.0), (SOME, 1.0), undo="residual"))
    before = dict(loaded[0].backup)
    changed = load(merge(loaded[0], (ALL, 1.0), (SOME, 0.5), undo="residual"))
    touched = {key for key in before if loaded[0].backup[key] is not before[key]}
    some = {target.target_key for target in attention_targets(lora_targets(SLIM))}
    assert touched == some & changed.patches.keys()
    carried = state_of(changed)
    loaded[0].clone().unpatch_model(loaded[0].offload_device)
    fresh = load(merge(loaded[0], (ALL, 1.0), (SOME, 0.5), undo="residual"))
    assert_equal(carried, state_of(fresh))
    assert adapter_calls == []


def test_merges_after_one_another_and_after_apply_are_one_record_per_weight(loaded, loras):
    first = merge(apply(loaded[0], (SOME, 0.5)), (ALL, 1.0), undo="residual")
    both = load(merge(first, (SOME, -0.25), undo="full"))
    assert records(both).keys() == both.patches.keys()
    expected = state_of(load(apply(loaded[0], (ALL, 1.0), (SOME, 0.25))))
    for key, value in state_of(load(both)).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7, msg=key)


def test_a_foreign_patch_on_top_keeps_a_full_backup_and_takes_part(loaded, loras, base):
    def with_foreign(model):
        model = model.clone()
        model.add_patches({KEY: ("diff", (torch.full(base[KEY].shape, 0.01),))}, 0.5)
        return model

    applied = state_of(load(with_foreign(apply(loaded[0], (ALL, 1.0)))))
    merged = load(with_foreign(merge(loaded[0], (ALL, 1.0), undo="residual")))
    assert merged.backup.keys() - records(merged).keys() == {KEY}
    assert torch.equal(state_of(merged)[KEY], applied[KEY])


def test_the_receipt_counts_weights_that_keep_a_full_backup(loaded, loras, base):
    model = loaded[0].clone()
    model.add_patches({KEY: ("diff", (torch.full(base[KEY].shape, 0.01),))}, 0.5)
    text = receipt(model, (ALL, 1.0))
    count = len([t for t in lora_targets(SLIM) if t.target_key in base])
    assert f"weights: {count - 1} merged in place, 1 as ComfyUI does, with a full copy " in text
    assert "(1: other patches lie on it)" in text


def test_a_class_of_another_pack_takes_the_path_of_apply_and_the_receipt_says_so(loaded, loras):
    from comfy.model_patcher import ModelPatcher

    class OtherPatcher(ModelPatcher):
        """Stands for a pack's own class."""

    other = loaded[0].clone()
    other.__class__ = OtherPatcher
    merged = load(merge(other, (ALL, 1.0)))
    assert type(merged) is OtherPatcher
    assert records(merged) == {}
    assert "the model is a OtherPatcher" in receipt(other, (ALL, 1.0))
    carried = state_of(merged)
    assert_equal(carried, state_of(load(apply(loaded[0], (ALL, 1.0)))))


def test_auto_without_a_file_copies_where_there_is_room_and_computes_elsewhere(
    comfy, loaded, loras, monkeypatch
):
    room = pack_module(comfy, "lora_core.patching.room")
    model = loaded[0].clone()
    model.cached_patcher_init = None
    for free, rung in ((1 << 40, "full"), (0, "residual")):
        monkeypatch.setattr(room, "free_bytes", lambda _, free=free: (free, 1 << 40))
        merged = load(merge(model, (ALL, 0.5 if free else 0.6)))
        assert {record.rung for record in records(merged).values()} == {rung}


@NAMES_FILES
def test_auto_takes_the_file(loaded, loras):
    merged = load(merge(loaded[0], (ALL, 1.0)))
    assert {record.rung for record in records(merged).values()} == {"file"}


def test_file_is_refused_where_the_loader_names_none(loaded, loras):
    model = loaded[0].clone()
    model.cached_patcher_init = None
    with pytest.raises(ValueError, match="does not say which file") as caught:
        merge(model, (ALL, 1.0), undo="file")
    assert "use undo 'auto'" in str(caught.value)


@NAMES_FILES
def test_file_is_refused_where_the_bits_differ(comfy, loaded, loras, monkeypatch):
    base_file = pack_module(comfy, "lora_core.patching.base_file")
    read = base_file.CheckpointRows.read_rows
    monkeypatch.setattr(
        base_file.CheckpointRows, "read_rows", lambda self, *rows: read(self, *rows) + 1
    )
    with pytest.raises(ValueError, match="does not hold this weight's bits"):
        merge(loaded[0], (ALL, 1.0), undo="file")


def corrupt(patcher, key, undo, monkeypatch, comfy):
    """Make the record of one weight lead to other bits; return what repairs it."""
    if undo != "file":
        live = patcher.model.state_dict()[key]
        word = (patcher.backup[key]._undo.copy if undo == "full" else live).view(torch.int32)[0, 0]
        bit = 1 << 20  # the last bits of a merged weight may round away
        word.bitwise_xor_(bit)
        return lambda: word.bitwise_xor_(bit)
    base_file = pack_module(comfy, "lora_core.patching.base_file")
    read = base_file.CheckpointRows.read_rows
    monkeypatch.setattr(
        base_file.CheckpointRows, "read_rows", lambda self, *rows: read(self, *rows) + 1
    )
    return monkeypatch.undo


@pytest.mark.parametrize("undo", ["residual", FILE, "full"])
def test_a_record_that_leads_elsewhere_is_never_returned(
    comfy, loaded, loras, base, undo, monkeypatch
):
    """Every further use says so, a merge's own uuid included, until the record is whole."""
    merged = load(merge(loaded[0], (ALL, 1.0), undo=undo))
    with torch.inference_mode():
        repair = corrupt(merged, KEY, undo, monkeypatch, comfy)
        with pytest.raises(ValueError, match="must not be used"):
            _ = merged.backup[KEY].weight
        for patcher in (loaded[0], merged):
            with pytest.raises(ValueError, match="could not be restored"):
                load(patcher)
        repair()
    assert_equal(state_of(load(loaded[0])), base)


def test_an_interrupt_in_the_middle_of_a_load_leaves_the_base(
    comfy, loaded, loras, base, monkeypatch
):
    merging = pack_module(comfy, "hosts.comfy.merge_on_device")
    real, calls = merging._merged_in_place, []

    def interrupted(*args):
        calls.append(args[0])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(merging, "_merged_in_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(merge(loaded[0], (ALL, 1.0), undo="residual"))
    assert loaded[0].backup == {}
    assert_equal(state_of(loaded[0]), base)


def test_strength_0_changes_nothing(loaded, loras):
    assert merge(loaded[0], (ALL, 0.0)) is loaded[0]


def test_equal_merges_have_equal_uuids_and_other_ones_have_others(loaded, loras):
    uuids = {
        merge(loaded[0], (ALL, strength), mode=mode, undo=undo).patches_uuid
        for strength in (1.0, 0.5)
        for mode, undo in (("on_device", "auto"), ("on_device", "full"))
        for _ in range(2)
    }
    assert len(uuids) == 4
    assert apply(loaded[0], (ALL, 1.0)).patches_uuid not in uuids


def unmerge(model):
    return run("LoraWorkbenchUnmerge", model)[0]


def test_an_unmerged_model_has_the_content_and_the_uuid_of_its_base(loaded, loras, adapter_calls):
    merged = merge(merge(loaded[0], (ALL, 1.0)), (SOME, 0.5))
    back = unmerge(merged)
    assert back.patches == {}
    assert back.patches_uuid == loaded[0].patches_uuid
    load(loaded[0])
    load(back)
    assert adapter_calls == []


def test_unmerge_leaves_what_other_nodes_put_on(loaded, loras):
    applied = apply(loaded[0], (SOME, 0.5))
    back = unmerge(merge(applied, (ALL, 1.0)))
    assert back.patches_uuid == applied.patches_uuid
    assert_equal(state_of(load(back)), state_of(load(applied)))
    after = apply(merge(loaded[0], (ALL, 1.0)), (SOME, 0.5))
    assert unmerge(after).patches.keys() == applied.patches.keys()
    assert unmerge(after).patches_uuid == unmerge(after).patches_uuid
    assert unmerge(after).patches_uuid not in {after.patches_uuid, loaded[0].patches_uuid}


def test_unmerge_says_what_to_connect_when_nothing_is_merged(loaded, loras):
    with pytest.raises(ValueError, match="connect the outputs of Merge Into Model"):
        unmerge(apply(loaded[0], (ALL, 1.0)))
    with pytest.raises(ValueError, match="baked into this model's weights"):
        unmerge(merge(loaded[0], (ALL, 1.0), mode="bake"))


def test_a_baked_model_is_a_base_of_its_own_with_the_bits_of_apply(loaded, loras, base):
    applied = apply(loaded[0], (SOME, 0.5))
    expected = state_of(load(apply(loaded[0], (SOME, 0.5), (ALL, 1.0))))
    load(applied)  # the incoming model is on the device, patched
    baked = merge(applied, (ALL, 1.0), mode="bake")
    assert baked.patches == baked.backup == {}
    assert baked.backup is not loaded[0].backup
    assert baked.cached_patcher_init is None
    for key, value in state_of(load(baked)).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7, msg=key)
    ours = {value.data_ptr() for value in baked.model.state_dict().values()}
    theirs = {value.data_ptr() for value in loaded[0].model.state_dict().values()}
    assert not ours & theirs
    assert applied.patches
    assert_equal(state_of(loaded[0]), base)


def test_baking_an_unpatched_weight_of_a_merged_model_starts_from_the_base(loaded, loras):
    merged = load(merge(loaded[0], (SOME, 1.0), undo="residual"))
    baked = merge(merged, (ALL, 1.0), mode="bake")
    expected = state_of(load(apply(loaded[0], (SOME, 1.0), (ALL, 1.0))))
    for key, value in state_of(baked).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7, msg=key)


def test_nothing_is_logged_as_an_error(loaded, loras, caplog):
    with caplog.at_level(logging.WARNING):
        load(merge(loaded[0], (ALL, 1.0), undo="residual"))
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
