"""Token ids to text, as they come: no character is ever split, no text ever taken back."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

#: What a decoder gives for bytes that are not (yet) a character.
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer, and which of its tokens need care."""

    tokenizer: Tokenizer
    special_ids: frozenset[int]  #: never shown
    byte_ids: frozenset[int]  #: byte fallback: a run of them is decoded as one
    longest: int  #: characters of the longest token

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        added = tokenizer.get_added_tokens_decoder()
        byte_tokens = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return cls(
            tokenizer=tokenizer,
            special_ids=frozenset(i for i, token in added.items() if token.special),
            byte_ids=frozenset(i for i in byte_tokens if i is not None),
            longest=max(map(len, tokenizer.get_vocab()), default=1),
        )


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
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._window = self._window[self._given :]
        self._given = len(self._window)
        return text

    def flush(self) -> str:
        """What was held back, at the end; an incomplete character becomes U+FFFD."""
        text = self._pending()
        self._given = len(self._window)
        return text

    def _pending(self) -> str:
        decode = self._tokenizer.decode
        return decode(self._window)[len(decode(self._window[: self._given])) :]
