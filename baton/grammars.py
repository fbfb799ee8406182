"""Grammars that hold an answer, compiled by llguidance for one tokenizer.

A grammar is a text in llguidance's own format: JSON with Lark grammars, JSON schemas and regular
expressions. The gateway makes and compiles it, so that a mistake is refused before anything is
placed; the workers that draw tokens compile it to know which may come next. Where an answer stands
in its grammar follows from its generated ids alone, so a replay needs no other state.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from baton.errors import BatonError, InvalidRequest, UnsupportedParameter
from baton.grammar_limits import GrammarLimits

#: The field that a refusal names, where no other is known.
_PARAM = "grammar"
#: Characters of llguidance's own words that a refusal has.
_MOST_WORDS = 400


class Constraint:
    """What one answer may go on with. Any thread may ask; one at a time is answered.

    ``allowed`` is a function of the generated ids; those it was asked about are remembered, so that
    each token is looked at once.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        """``matcher`` is its own, at the beginning."""
        self._matcher = matcher
        self._consumed = 0
        self._mask: bytes | None = None  # after what was consumed
        self._lock = threading.Lock()

    def fork(self) -> Constraint:
        """One that goes on from here by itself. Microseconds."""
        with self._lock:
            twin = Constraint(self._matcher.deep_copy())
            twin._consumed, twin._mask = self._consumed, self._mask
        return twin

    def allowed(self, generated_ids: Sequence[int]) -> bytes:
        """One bit for each id of the vocabulary, least significant first: set if it may come next.

        End-of-sequence ids may come where the answer is complete. ``generated_ids`` begins with
        those of the last call. Raises InvalidRequest when they break the grammar, or when that
        grows too complex.
        """
        with self._lock:
            if self._mask is None or len(generated_ids) > self._consumed:
                self._mask = None  # whoever asks again after an error is told the same
                for token_id in generated_ids[self._consumed :]:
                    self._consume(token_id)
                mask = self._matcher.compute_bitmask()
                if self._matcher.is_error():
                    raise _broken(self._matcher, "the grammar has no way to go on")
                self._mask = mask
            return self._mask

    def _consume(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            place = f"generated token {self._consumed} ({token_id}) does not follow the grammar"
            raise _broken(self._matcher, place)
        self._consumed += 1


class Grammars:
    """Compiles on a thread of its own, one grammar after the other, and keeps the last ones.

    ``tokenizer`` gives the text of tokenizer.json, when first needed; it may raise OSError.
    """

    def __init__(
        self, tokenizer: Callable[[], str], vocab_size: int, limits: GrammarLimits
    ) -> None:
        self._source = tokenizer
        self._vocab_size = vocab_size
        self._limits = limits
        self._parser_limits = LLParserLimits(max_lexer_states=limits.states, verbose_errors=False)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")
        # What follows belongs to that thread.
        self._eos_ids: tuple[int, ...] | None = None
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    async def begin(
        self, grammar: str, eos_ids: Sequence[int], generated_ids: Sequence[int] = ()
    ) -> Constraint:
        """The constraint of an answer that has ``generated_ids`` already.

        Raises InvalidRequest for a grammar that is too long, wrong, too complex, or not followed by
        those ids; UnsupportedParameter where there is no tokenizer to compile it for.
        """
        size = len(grammar.encode())
        if size > self._limits.bytes:
            raise InvalidRequest(
                f"the grammar has {size} bytes, but {self._limits.bytes} are allowed", param=_PARAM
            )
        if not eos_ids:
            raise UnsupportedParameter(
                "an answer cannot be held to a grammar: no end-of-sequence id would end it",
                param=_PARAM,
            )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, self._begin, grammar, tuple(eos_ids), generated_ids
        )

    def close(self) -> None:
        """Let what compiles end; nothing new is begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self, grammar: str, eos_ids: tuple[int, ...], generated_ids: Sequence[int]
    ) -> Constraint:
        matcher = self._compiled(grammar, eos_ids)
        constraint = Constraint(matcher.deep_copy())
        constraint.allowed(generated_ids)
        return constraint

    def _compiled(self, grammar: str, eos_ids: tuple[int, ...]) -> LLMatcher:
        """At the beginning, its first mask computed: some mistakes show only there."""
        if eos_ids != self._eos_ids or self._tokenizer is None:
            self._tokenizer = self._load(eos_ids)
            self._eos_ids = eos_ids
            self._kept.clear()
        if grammar in self._kept:
            self._kept.move_to_end(grammar)
            return self._kept[grammar]
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._parser_limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _broken(matcher, "the grammar cannot be compiled")
        self._kept[grammar] = matcher
        if len(self._kept) > self._limits.kept:
            self._kept.popitem(last=False)
        return matcher

    def _load(self, eos_ids: tuple[int, ...]) -> LLTokenizer:
        try:
            return LLTokenizer(self._source(), n_vocab=self._vocab_size, eos_token=list(eos_ids))
        except (OSError, ValueError) as error:
            raise UnsupportedParameter(
                f"an answer cannot be held to a grammar: no tokenizer to compile it for: {error}",
                param=_PARAM,
            ) from error


def _broken(matcher: LLMatcher, what: str) -> BatonError:
    """With the first lines of llguidance's own words."""
    lines = matcher.get_error().replace("<non-verbose/>", "").strip().splitlines()
    words = " ".join(line.strip() for line in lines)
    return InvalidRequest(f"{what}: {words[:_MOST_WORDS]}", param=_PARAM)
