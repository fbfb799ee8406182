"""Token ids to text, as they come: no character is ever split, no text ever taken back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer


def _byte_alphabet() -> dict[str, int]:
    """How byte-level tokenizers write each byte as one visible character: those that are visible as
    themselves, the others, in order, as the characters from 256 on (GPT-2's encoder.py)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted({*range(256)} - {*visible})
    written = {chr(byte): byte for byte in visible}
    return written | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()
#: How tokenizers of the SentencePiece kind write a space.
_SPACE = "\u2581"
#: What a decoder gives for bytes that are not (yet) a character.
_REPLACEMENT = "\ufffd"
#: Bytes of the longest character, so many ids at most.
_CHARACTER = 4
#: Ids without a whole character after which they are taken for broken text. Were all kept to be
#: decoded again with each id, thousands would take minutes.
_PATIENCE = 4 * _CHARACTER


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer, and which of its tokens need care."""

    tokenizer: Tokenizer
    special_ids: frozenset[int]  #: never shown
    byte_ids: frozenset[int]  #: byte fallback: a run of them is decoded as one
    longest: int  #: characters of the longest token
    added: Mapping[int, str]  #: texts of tokens that were added as they are
    byte_level: bool  #: the others are written in the byte alphabet

    def specials(self, texts: Iterable[str]) -> dict[int, str]:
        """Those of ``texts`` that are special tokens, by their ids."""
        ids = {self.tokenizer.token_to_id(text): text for text in texts}
        return {i: text for i, text in ids.items() if i is not None and i in self.special_ids}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        added = tokenizer.get_added_tokens_decoder()
        byte_tokens = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return cls(
            tokenizer=tokenizer,
            special_ids=frozenset(i for i, token in added.items() if token.special),
            byte_ids=frozenset(i for i in byte_tokens if i is not None),
            longest=max(map(len, tokenizer.get_vocab()), default=1),
            added={i: token.content for i, token in added.items()},
            byte_level=_is_byte_level(tokenizer),
        )

    def written(self, token_id: int) -> str:
        """A token as the tokenizer writes it; empty for an id that it does not know."""
        return self.tokenizer.id_to_token(token_id) or ""

    def bytes_of(self, token_id: int) -> bytes:
        """What one token stands for, by itself: a space before a word included, and bytes that are
        only a part of a character. Empty for an id that the tokenizer does not know."""
        text = self.added.get(token_id)
        if text is not None:
            return text.encode()
        text = self.written(token_id)
        if token_id in self.byte_ids:
            return bytes([int(text[1:-1], 16)])
        if self.byte_level and all(character in _BYTES for character in text):
            return bytes(_BYTES[character] for character in text)
        return text.replace(_SPACE, " ").encode()


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    decoder = tokenizer.decoder
    return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


class Detokenizer:
    """The text given out, in all, is exactly the decoding of all ids at once.

    Each step decodes a short window twice, without and with the new ids, and gives out the
    difference. (``tokenizers.DecodeStream`` raises on sequences that byte fallback cannot
    decode, and has no flush.)
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._special_ids = vocabulary.special_ids
        self._byte_ids = vocabulary.byte_ids
        self._window: list[int] = []
        #: Ids at the start of the window whose text was given out: context for the rest.
        self._given = 0

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""
        if token_id in self._special_ids:
            return ""
        self._window.append(token_id)
        if token_id in self._byte_ids:
            return ""
        text = self._pending()
        if text and not text.endswith(_REPLACEMENT):
            return self._give(text, len(self._window))
        return self._give_broken() if len(self._window) - self._given > _PATIENCE else ""

    def flush(self) -> str:
        """What was held back, at the end; an incomplete character becomes U+FFFD."""
        text = self._pending()
        self._given = len(self._window)
        return text

    def _give(self, text: str, end: int) -> str:
        """Give out the text of the ids before ``end``, which stay as context for the rest."""
        self._window, self._given = self._window[self._given :], end - self._given
        return text

    def _give_broken(self) -> str:
        """So many ids are no beginning of a character: give out what no id to come can change.

        What is decoded alone as it is within the whole does not end in the middle of a character.
        """
        whole = self._pending()
        for end in range(len(self._window) - _CHARACTER, len(self._window) - 2 * _CHARACTER, -1):
            text = self._pending(end)
            if whole.startswith(text):
                return self._give(text, end)
        return ""

    def _pending(self, end: int | None = None) -> str:
        decode = self._tokenizer.decode
        return decode(self._window[:end])[len(decode(self._window[: self._given])) :]
