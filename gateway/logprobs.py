"""Log probabilities as the OpenAI API shows them: of chat, and of text completions."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.answers import CompletionLogprobs, LikelyToken, TokenLogprob
from gateway.detokenizer import Vocabulary
from gateway.transcript import Scored


class Logprobs:
    """Renders scored tokens. Which texts and bytes they stand for, the vocabulary says."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def chat(self, scored: Iterable[Scored]) -> list[TokenLogprob]:
        """An entry per token. Bytes that are no whole character show as U+FFFD in ``token``; in
        ``bytes`` they are what they are."""
        return [
            {
                **self._token(one.token_id, one.logprobs.logprob),
                "top_logprobs": [self._token(*best) for best in one.logprobs.top],
            }
            for one in scored
        ]

    def completion(self, scored: Iterable[Scored], before: int) -> CompletionLogprobs:
        """Four lists, an entry per token in each. The token itself is always among its
        ``top_logprobs``. ``before``: characters shown before the answer's own."""
        all_ = list(scored)
        return {
            "tokens": [self._name(one.token_id) for one in all_],
            "token_logprobs": [one.logprobs.logprob for one in all_],
            "top_logprobs": [self._best(one) for one in all_],
            "text_offset": [before + one.offset for one in all_],
        }

    def echo(self, first: int, scored: Iterable[Scored]) -> CompletionLogprobs:
        """Likewise, of a prompt: nothing says how likely its ``first`` token is."""
        others = self.completion(scored, 0)
        return {
            "tokens": [self._name(first), *others["tokens"]],
            "token_logprobs": [None, *others["token_logprobs"]],
            "top_logprobs": [None, *others["top_logprobs"]],
            "text_offset": [0, *others["text_offset"]],
        }

    def _token(self, token_id: int, logprob: float) -> LikelyToken:
        data = self._vocabulary.bytes_of(token_id)
        return {
            "token": data.decode(errors="replace"),
            "logprob": logprob,
            "bytes": list(data),
        }

    def _best(self, one: Scored) -> dict[str, float]:
        best: dict[str, float] = {}
        for token_id, logprob in (*one.logprobs.top, (one.token_id, one.logprobs.logprob)):
            best.setdefault(self._name(token_id), logprob)
        return best

    def _name(self, token_id: int) -> str:
        """A token's text; where it is no whole character, its bytes as OpenAI spells them."""
        data = self._vocabulary.bytes_of(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
