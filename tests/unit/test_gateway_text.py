"""Detokenising and stopping: whatever the split, the text is that of all tokens at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from gateway.detokenizer import (
    ByteDetokenizer,
    Detokenizer,
    Vocabulary,
    WindowDetokenizer,
    detokenizer,
)
from gateway.stopper import Stopper
from tests.fakes import VOCAB_SIZE, byte_tokenizer

BYTE_LEVEL = byte_tokenizer()
ALPHABET = "aäb€c😀 \ufffd"


def byte_fallback() -> Tokenizer:
    """As sentencepiece's: words begin with a mark, rare characters are runs of byte tokens."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc", "▁ab", "ä"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


BYTE_FALLBACK = byte_fallback()


def byte_level_with_added() -> Tokenizer:
    """Added tokens whose characters are bytes of the alphabet, or are not."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["é", "Ġé", "日本", " a", "é日"])
    return tokenizer


ADDED = byte_level_with_added()
Make = Callable[[Vocabulary], Detokenizer]
#: What is chosen for a vocabulary, and what is right for any.
BOTH = pytest.mark.parametrize("make", [detokenizer, WindowDetokenizer])


def pieces(tokenizer: Tokenizer, ids: Sequence[int], make: Make = detokenizer) -> list[str]:
    made = make(Vocabulary.of(tokenizer))
    return [*(made.push(i) for i in ids), made.flush()]


def test_the_cheap_way_is_for_bytes_alone() -> None:
    assert isinstance(detokenizer(Vocabulary.of(BYTE_LEVEL)), ByteDetokenizer)
    assert isinstance(detokenizer(Vocabulary.of(BYTE_FALLBACK)), WindowDetokenizer)


@BOTH
@given(text=st.text(ALPHABET, max_size=30))
def test_text_makes_the_round_trip_and_no_character_is_split(make: Make, text: str) -> None:
    given_out = pieces(BYTE_LEVEL, BYTE_LEVEL.encode(text).ids, make)
    assert "".join(given_out) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in given_out)


@BOTH
@given(ids=st.lists(st.integers(0, VOCAB_SIZE + 9), max_size=40))
def test_any_ids_give_the_full_decoding(make: Make, ids: list[int]) -> None:
    assert "".join(pieces(ADDED, ids, make)) == ADDED.decode(ids)


#: Ids of bytes that begin a character, go on with one, or can be in none.
BROKEN = BYTE_LEVEL.encode("é€😀").ids


@BOTH
@given(ids=st.lists(st.sampled_from(BROKEN), min_size=20, max_size=80))
def test_broken_characters_give_the_full_decoding_and_are_not_kept_for_ever(
    make: Make, ids: list[int]
) -> None:
    made = make(Vocabulary.of(BYTE_LEVEL))
    given_out = ""
    for count, token_id in enumerate(ids, start=1):
        given_out += made.push(token_id)
        held = BYTE_LEVEL.decode(ids[:count])[len(given_out) :]
        assert len(held) <= 20, "bounded"
    assert given_out + made.flush() == BYTE_LEVEL.decode(ids)


@given(st.lists(st.integers(0, BYTE_FALLBACK.get_vocab_size() - 1), max_size=40))
def test_any_ids_give_the_full_decoding_with_byte_fallback(ids: list[int]) -> None:
    assert "".join(pieces(BYTE_FALLBACK, ids)) == BYTE_FALLBACK.decode(ids)


@given(st.lists(st.sampled_from(["▁", "a", "▁ab", "ä", "</s>", "<0xE2>", "<0x82>", "<0xAC>"])))
def test_spaces_survive_beside_special_and_byte_tokens(tokens: list[str]) -> None:
    ids = [BYTE_FALLBACK.token_to_id(token) for token in tokens]
    assert "".join(pieces(BYTE_FALLBACK, ids)) == BYTE_FALLBACK.decode(ids)


def test_ascii_comes_token_by_token() -> None:
    assert pieces(BYTE_LEVEL, BYTE_LEVEL.encode("abc").ids) == ["a", "b", "c", ""]


def test_an_incomplete_character_is_given_out_at_the_end() -> None:
    ids = BYTE_LEVEL.encode("a€").ids[:-1]
    assert pieces(BYTE_LEVEL, ids) == ["a", "", "", "\ufffd"]


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """What the stopper should give: the text before the stop string completed first."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


@given(st.lists(st.text("ab", max_size=5)), STOPS)
def test_the_cut_is_the_same_for_any_split(parts: list[str], stops: list[str]) -> None:
    stopper = Stopper(stops)
    given_out = "".join(stopper.push(part) for part in parts)
    if not stopper.stopped:
        given_out += stopper.flush()
    assert (given_out, stopper.stopped) == cut("".join(parts), stops)


@given(st.text("ab", max_size=12), STOPS)
def test_only_what_could_become_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    stopper = Stopper(stops)
    given_out = stopper.push(text)
    if not stopper.stopped:
        held = text[len(given_out) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize("text", ["", "abc"])
def test_without_stop_strings_nothing_is_held_back(text: str) -> None:
    assert Stopper(()).push(text) == text
