"""Token ids to text, as they come: no character is ever split, no text ever taken back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer

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
