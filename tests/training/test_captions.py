"""Captions: what may change and what may not."""

from collections import Counter

import pytest

from lora_workbench.hosts.embedded.text.tokenizer import clip_tokenizer
from lora_workbench.hosts.embedded.text.tokens import START, tokenize
from lora_workbench.training.dataset.captions import (
    as_prompt,
    caption_of,
    captions_vary,
    plain_caption,
    tags_of,
)

TAGS = "sks, dog, grass, sun, park"


@pytest.fixture
def sample(folder):
    folder.add("a.png", caption=TAGS)
    return folder.scan().samples[0]


def captions(sample, settings, count=200):
    return [caption_of(sample, settings, 0, epoch, 0) for epoch in range(count)]


def test_without_options_it_is_as_written(sample, folder):
    odd = "a dog,on grass ,, (x:1.2)"
    folder.add("a.png", caption=odd)
    found = folder.scan()
    assert captions(found.samples[0], found.settings, 3) == [odd] * 3


def test_shuffling_keeps_all_tags_and_the_first_ones_in_place(sample, folder):
    found = captions(sample, folder.settings(shuffle_tags=True, keep_tags=2))
    assert all(sorted(text.split(", ")) == sorted(TAGS.split(", ")) for text in found)
    assert all(text.startswith("sks, dog, ") for text in found)
    counts = Counter(found)
    assert len(counts) == 6
    assert min(counts.values()) > 15  # of 33


def test_tags_are_dropped_by_their_share_in_their_order(sample, folder):
    found = captions(sample, folder.settings(tag_dropout=0.25, keep_tags=1))
    written = TAGS.split(", ")
    kept = [text.split(", ") for text in found]
    assert all(tags[0] == "sks" for tags in kept)
    assert all(tags == sorted(tags, key=written.index) for tags in kept)
    share = 1 - sum(len(tags) - 1 for tags in kept) / (4 * len(kept))
    assert share == pytest.approx(0.25, abs=0.05)


def test_whole_captions_are_dropped_by_their_share(sample, folder):
    found = captions(sample, folder.settings(caption_dropout=0.3, prefix="trigger"))
    assert set(found) == {"", f"trigger {TAGS}"}
    assert found.count("") / len(found) == pytest.approx(0.3, abs=0.08)
    assert set(captions(sample, folder.settings(caption_dropout=1.0))) == {""}


def test_prefix_and_suffix_worked_example(sample, folder):
    settings = folder.settings(prefix="in sks style,", suffix=", best")
    assert caption_of(sample, settings, 0, 0, 0) == f"in sks style, {TAGS} , best"
    assert plain_caption(sample, settings) == f"in sks style, {TAGS} , best"


def test_regularisation_never_gets_the_trigger_words(folder, other_folder):
    spare = other_folder("spare")
    spare.add("r.png", caption="a dog")
    folder.add("a.png")
    found = folder.scan(regularisation=str(spare.path), prefix="sks", suffix="x")
    assert [plain_caption(s, found.settings) for s in found.samples] == ["sks x", "a dog"]


def test_a_caption_is_a_function_of_the_showing(sample, folder):
    settings = folder.settings(shuffle_tags=True)
    one = [
        caption_of(sample, settings, 5, epoch, repeat) for epoch in range(3) for repeat in (0, 1)
    ]
    again = [caption_of(sample, settings, 5, e, r) for e in (2, 1, 0) for r in (1, 0)]
    assert one == again[::-1]
    assert len(set(one)) > 1
    other_seed = [caption_of(sample, settings, 6, e, r) for e in range(3) for r in (0, 1)]
    assert other_seed != one


def test_one_option_does_not_change_what_another_draws(sample, folder):
    """With dropout on, the captions that are left have the order that they had without it."""
    plain = captions(sample, folder.settings(shuffle_tags=True), 50)
    dropped = captions(sample, folder.settings(shuffle_tags=True, caption_dropout=0.5), 50)
    assert {""} < set(dropped)
    assert all(b in (a, "") for a, b in zip(plain, dropped, strict=True))


def test_other_separators(folder):
    settings = folder.settings(tag_separator="|", shuffle_tags=True)
    assert tags_of("a, b | c||d", settings) == ["a, b", "c", "d"]


def test_which_options_leave_nothing_to_cache(folder):
    assert not captions_vary(folder.settings(caption_dropout=0.5))
    assert captions_vary(folder.settings(shuffle_tags=True))
    assert captions_vary(folder.settings(tag_dropout=0.1))


@pytest.mark.parametrize("caption", ["miku (vocaloid)", "((a))", "(a:2) b", r"c \(d\)", "e"])
def test_a_caption_means_its_own_words(caption):
    """Brackets are letters, as kohya and diffusers train them, and weigh nothing."""
    tokenizer = clip_tokenizer()
    (chunk,) = tokenize(as_prompt(caption), "l", tokenizer)
    assert {token.weight for token in chunk} == {1.0}
    own = [token.id for token in chunk if token.id < START]
    assert own == [int(token) for token in tokenizer(caption)]
