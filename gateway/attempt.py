"""One attempt as the gateway holds it: the fence for its tokens, and the queue they wait in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from baton.errors import BatonError
from baton.generation import AttemptKey, FinishReason, Progress, Timings, TokenLogprobs

#: Who wants to know how far an attempt is.
Heed: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt generated all there was to generate."""

    reason: FinishReason
    timings: Timings


class Attempt:
    """Tokens of one attempt, between the session that reads them and the request that takes them.

    The queue needs no limit of its own: indices only go up, one token each, and never past
    ``limit`` (the request's max_tokens), so a client that does not read costs that many integers
    at most. Putting never waits.
    """

    def __init__(
        self,
        key: AttemptKey,
        next_index: int,
        limit: int,
        cancel: Callable[[], None],
        prefill: str = "",
        heed: Heed | None = None,
        *,
        logprobs: bool = False,
    ) -> None:
        """``prefill``: instance of the worker that computes the prompt, empty for the decode
        worker itself. ``heed`` is told how far it is, if its worker says so. ``logprobs``: tokens
        are to come with theirs."""
        self.key = key
        self.ended: Finished | BatonError | None = None
        #: Prompt tokens that nobody computed for it, once its worker has said so.
        self.cached_tokens: int | None = None
        self.heed = heed
        self._prefill = prefill
        self._first = self._next = next_index
        self._limit = limit
        self._cancel = cancel
        self._tokens: list[int] = []
        self._wants_logprobs = logprobs
        self._logprobs: deque[TokenLogprobs] = deque()
        self._news: asyncio.Future[None] | None = None  # somebody waits for it

    def put(
        self, index: int, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()
    ) -> bool:
        """Accept the tokens only if they are the next ones, with their log probabilities if those
        are wanted; False when they are not."""
        if index != self._next or index + len(token_ids) > self._limit or self.ended is not None:
            return False
        if self._wants_logprobs and len(logprobs) != len(token_ids):
            return False
        self._next += len(token_ids)
        self._tokens.extend(token_ids)
        if self._wants_logprobs:
            self._logprobs.extend(logprobs)
        self._tell()
        return True

    def end(self, how: Finished | BatonError) -> None:
        """No more tokens; those received stay to be taken. The first end counts."""
        if self.ended is None:
            self.ended = how
            self._tell()

    def give_up(self, error: BatonError) -> None:
        """End it here and on the worker."""
        self.cancel()
        self.end(error)

    @property
    def pending(self) -> bool:
        """Whether there are tokens to take."""
        return bool(self._tokens)

    @property
    def finished(self) -> Finished | None:
        """How generation ended, once it has by itself and every token was taken."""
        return self.ended if isinstance(self.ended, Finished) and not self._tokens else None

    async def take(self) -> list[int]:
        """Wait for tokens; empty when the attempt has finished without more.

        Raises what ended the attempt early, once all tokens before it were taken.
        """
        if not self._tokens and self.ended is None:
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        tokens, self._tokens = self._tokens, []
        if not tokens and isinstance(self.ended, BatonError):
            raise self.ended
        return tokens

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def logprobs(self, count: int) -> list[TokenLogprobs]:
        """Of the next ``count`` tokens taken; empty where none are wanted."""
        return [self._logprobs.popleft() for _ in range(count)] if self._wants_logprobs else []

    def awaits(self, instance_id: str) -> bool:
        """Whether this prefill worker is still to compute the prompt."""
        return self._prefill == instance_id and self._next == self._first

    def cancel(self) -> None:
        """End the attempt on the worker too, unless it has ended. Idempotent, never waits."""
        self._cancel()
