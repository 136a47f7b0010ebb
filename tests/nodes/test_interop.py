"""LORA_STACK through other packs: each pack's way of reading it, in our own words.

Facts of the packs were read in their source; no code of theirs is here.
"""

import copy
import random
from pathlib import Path, PurePosixPath

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.lora import lora_from_tensors
from lora_workbench.lora_core.stack import StackItem
from lora_workbench.lora_core.weighting import Weighting
from lora_workbench.nodes.load import LoraWorkbenchLoad
from lora_workbench.nodes.lora_stack import PLAIN, StackEntry
from lora_workbench.nodes.resolve import entries_of
from lora_workbench.nodes.rows import Rows
from lora_workbench.nodes.stack import LoraWorkbenchStack


def efficiency_stacker(own, incoming):
    """Own rows first, then the incoming ones that are not off."""
    return [*own, *(row for row in incoming or () if row[0] != "None")]


def efficiency_loader(stack):
    """Goes through the set of the entries, each of exactly three values."""
    return {name: (model, clip) for name, model, clip in set(stack)}


def comfyroll(own, incoming):
    """Incoming first; each entry is taken apart and put together again."""
    return [*((name, model, clip) for name, model, clip in incoming or ()), *own]


def easy_use(own, incoming):
    """Incoming entries that are not off, as they are, then its own; None when switched off."""
    return [*(row for row in incoming or () if row[0] != "None"), *own]


def lora_manager(own, incoming, host):
    """Looks each file up again by its base name; writes the system's own separator."""
    rows = []
    for path, model, clip in [*(incoming or ()), *own]:
        base = PurePosixPath(path.replace("\\", "/")).stem
        found = [name for name in host.lora_names() if Path(name).stem == base]
        rows.append((found[0] if found else path, model, clip))
    return rows


@pytest.fixture
def ours(host):
    """A stack of two files, the first with a weighting."""
    host.write("style/ink.safetensors")
    host.write("detail.safetensors", 2.0)
    load = LoraWorkbenchLoad.bound_to(host)()
    first, _, _ = load.execute("ink", 0.8, 0.4, weighting="attn2=0.5")
    return load.execute("detail", 0.6, 0.6, lora_stack=first)[0]


def read_back(host, stack):
    """What Apply sees: values, weightings, notes of the report."""
    entries, notes = entries_of(host, stack, Rows(()))
    weightings = [entry.item.weighting.to_text() for entry in entries]
    return list(map(tuple, entries)), weightings, "\n".join(notes)


def values(host, stack):
    return read_back(host, stack)[0]


INK = str(Path("style", "ink.safetensors"))
OURS = [(INK, 0.8, 0.4), ("detail.safetensors", 0.6, 0.6)]


@pytest.mark.parametrize("pack", [efficiency_stacker, easy_use])
def test_entries_passed_on_as_they_are_keep_their_weighting(host, ours, pack):
    got, weightings, notes = read_back(host, pack([], ours))
    assert (got, weightings, notes) == (OURS, ["attn2=0.5", ""], "")


def test_entries_taken_apart_lose_it_and_the_report_says_so(host, ours):
    got, weightings, notes = read_back(host, comfyroll([], ours))
    assert (got, weightings) == (OURS, ["", ""])
    assert notes == f"{PLAIN}: {INK}, detail.safetensors"


def test_the_report_knows_it_behind_our_own_nodes_too(host, ours):
    """A note travels with its entry, through LoRA Stack to Apply."""
    host.write("third.safetensors", 3.0)
    stack, _, _ = LoraWorkbenchStack.bound_to(host)().execute(
        "<lora:third:1>", comfyroll([], ours[:1])
    )
    assert read_back(host, stack)[2] == f"{PLAIN}: {INK}"


def test_resorted_and_duplicated_entries_keep_what_each_carries(host, ours):
    plain = tuple(ours[0])
    shuffled = [ours[1], plain, ours[0], ours[0], *ours]
    random.Random(0).shuffle(shuffled)
    got, weightings, notes = read_back(host, shuffled)
    assert got == list(map(tuple, shuffled))
    expected = ["attn2=0.5" if entry is ours[0] else "" for entry in shuffled]
    assert weightings == expected
    assert notes == f"{PLAIN}: {INK}"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, list, sorted])
def test_copies_of_a_stack_keep_its_entries(host, ours, copied):
    got, weightings, notes = read_back(host, copied(ours))
    assert dict(zip(got, weightings, strict=True)) == dict(
        zip(OURS, ["attn2=0.5", ""], strict=True)
    )
    assert notes == ""


def test_efficiency_s_set_sees_two_rows_of_one_file_that_differ_only_in_weighting(ours):
    twin = StackEntry(INK, StackItem(ours[0].item.lora, 0.8, 0.4, Weighting.parse("ff=0")))
    assert len(set([*ours, twin])) == 3  # noqa: C405  the pack's way
    assert efficiency_loader([*ours, twin])[INK] == (0.8, 0.4)


def test_other_packs_files_arrive_in_their_order(host, ours):
    """Efficiency puts its own rows first, the others last: the list's order is kept."""
    host.write("own.safetensors", 3.0)
    own = [("own.safetensors", 1.0, 1.0)]
    assert values(host, efficiency_stacker(own, ours)) == own + OURS
    assert values(host, comfyroll(own, ours)) == OURS + own
    assert values(host, easy_use(own, [*ours, ("None", 1.0, 1.0)])) == OURS + own


def test_lora_manager_finds_our_entries_and_we_its(host, ours):
    again = lora_manager([], ours, host)
    assert values(host, again) == OURS


@pytest.mark.parametrize(
    "name",
    [
        "style/ink.safetensors",
        "style\\ink.safetensors",
        "style/ink",
        "ink",
        "./style/ink.safetensors",
    ],
)
def test_names_of_any_system_mean_one_file(host, ours, name):
    assert values(host, [(name, 1.0, 1.0)]) == [(INK, 1.0, 1.0)]


def test_an_absolute_path_inside_a_folder_is_its_file(host, ours):
    """Efficiency and Lora Manager pass such paths."""
    path = str(host.folder / "style" / "ink.safetensors")
    assert values(host, [(path, 1.0, 1.0)]) == [(INK, 1.0, 1.0)]


def test_an_absolute_path_outside_is_refused(host, ours, tmp_path):
    for path in (tmp_path / "ink.safetensors", host.folder / ".." / "ink.safetensors"):
        with pytest.raises(LoraError, match="not a name inside the LoRA folders"):
            values(host, [(str(path), 1.0, 1.0)])


@pytest.mark.parametrize(
    "nothing", [None, [], [None], [("None", 1.0, 1.0)], [[]], [(INK, 0.0, 0.0)]]
)
def test_a_pack_that_is_switched_off_adds_nothing(host, nothing):
    assert values(host, nothing) == []


def test_nested_lists_and_short_entries_are_read_in_order(host, ours):
    nested = [[ours[0]], [("detail", 0.6, 0.6)], ["detail", 0.3]]
    assert values(host, nested) == [*OURS, ("detail.safetensors", 0.3, 0.3)]


def test_lora_optimizer_s_five_values_and_dicts_are_read_and_named(host, ours):
    five = ("detail.safetensors", 0.6, 0.6, "weighted_average", "all")
    fields = {
        "name": "detail.safetensors",
        "lora": {"x": torch.ones(1)},
        "strength": 0.5,
        "clip_strength": 0.25,
        "conflict_mode": "all",
    }
    got, _, notes = read_back(host, [five, fields, {"_merge_formula": "1+2"}])
    assert got == [("detail.safetensors", 0.6, 0.6), ("detail.safetensors", 0.5, 0.25)]
    assert "values after the third were left out: ('weighted_average', 'all')" in notes
    assert "these fields were left out: conflict_mode" in notes
    assert "without a file name was left out: {'_merge_formula'" in notes


def test_a_row_that_its_pack_switched_off_is_not_applied(host, ours):
    rows = [
        {"name": "detail.safetensors", "strength": 1.0, "active": False},
        {"on": False, "lora": "gone.safetensors", "strength": 1.0},
        {"on": True, "lora": "detail.safetensors", "strength": 0.5, "strengthTwo": None},
    ]
    assert values(host, rows) == [("detail.safetensors", 0.5, 0.5)]


def test_an_entry_in_memory_goes_through_a_set_but_not_through_taking_apart(host):
    """Another pack fails on it by name; we say what happened, and apply nothing else."""
    lora = lora_from_tensors("trained", {"x.lora_down.weight": torch.ones(2, 6)})
    stack = [StackEntry("<memory>/trained", StackItem(lora, 1.0, 1.0))]
    assert values(host, list(set(stack))) == [("<memory>/trained", 1.0, 1.0)]
    with pytest.raises(LoraError, match=r"<memory>/trained(.|\n)*dropped its tensors"):
        values(host, comfyroll([], stack))


def test_our_output_is_what_strict_readers_take(ours):
    """A fresh list of hashable entries that unpack as (str, float, float)."""
    assert type(ours) is list
    for name, model, clip in ours:
        assert (type(name), type(model), type(clip)) == (str, float, float)
    assert efficiency_loader(ours) == {name: (model, clip) for name, model, clip in OURS}
