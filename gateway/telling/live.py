"""What the feed says of one request; often enough to follow it, and no more."""

from __future__ import annotations

from dataclasses import dataclass

from baton import live
from baton.errors import BatonError
from baton.generation import Progress
from gateway.telling.feed import Feed
from gateway.telling.gaps import Gaps, milliseconds
from gateway.telling.paces import Paces
from gateway.telling.tale import Ending, Leaving, Placing, Tale

#: Seconds between two ``decode`` events of a choice.
_DECODE_EVERY = 0.25


@dataclass(frozen=True, slots=True)
class Clock:
    """Unix seconds for those of ``time.monotonic``; so they never go back."""

    offset: float  #: from these to those

    def unix(self, at: float) -> float:
        return round(self.offset + at, 6)


@dataclass(slots=True)
class Counting:
    """Tokens of all requests that came while somebody listened."""

    tokens: int = 0


@dataclass(slots=True)
class _Choice:
    last_at: float = 0.0  #: of tokens
    said_at: float = 0.0  #: of the last event
    said_tokens: int = 0  #: by then
    begun: bool = False
    decode: str = ""  #: worker that has it


class Live:
    """Hears of one request, and tells it to the feed."""

    curious = True

    def __init__(self, tale: Tale, feed: Feed, paces: Paces, clock: Clock, count: Counting) -> None:
        self._tale = tale
        self._feed = feed
        self._paces = paces
        self._clock = clock
        self._count = count
        self._id = tale.request.request_id
        begun = tale.first_token_at is not None
        place = tale.place
        decode = "" if place is None else live.short(place.decode.instance_id)
        self._choices = {c: _Choice(begun=begun, decode=decode) for c in tale.request.choices}
        self._gaps = Gaps()

    def queued(self, at: float) -> None:
        request = self._tale.request
        self._feed.say(
            live.Queued(
                request=self._id,
                at=self._clock.unix(at),
                prompt_tokens=len(request.prompt_ids),
                max_tokens=request.sampling.max_tokens,
                choices=request.n,
                priority=request.priority,
            )
        )

    def placed(self, placing: Placing) -> None:
        place = placing.place
        for choice in placing.choices:
            self._choices[choice].decode = live.short(place.decode.instance_id)
        self._feed.say(
            live.Placed(
                request=self._id,
                at=self._clock.unix(placing.at),
                attempt=placing.attempt,
                choices=list(placing.choices),
                decode=live.short(place.decode.instance_id),
                prefill=_prefill(self._tale),
                policy=placing.policy,
                tokens=placing.tokens,
                cached=place.cached,
                waited_ms=milliseconds(placing.at - placing.since),
            )
        )

    def progressed(self, attempt: int, progress: Progress, at: float) -> None:
        unix, worker = self._clock.unix(at), live.short(progress.prefill_instance_id)
        computed, total = progress.computed_tokens, progress.total_tokens
        self._paces.computed(worker, (self._id, attempt), at, computed, total)
        self._feed.say(
            live.Prefill(
                request=self._id,
                at=unix,
                attempt=attempt,
                worker=worker,
                computed=computed,
                cached=progress.cached_tokens,
                total=total,
            )
        )
        if progress.kv_total_bytes:
            self._feed.say(
                live.Kv(
                    request=self._id,
                    at=unix,
                    attempt=attempt,
                    bytes=progress.kv_bytes,
                    total_bytes=progress.kv_total_bytes,
                    layers=progress.kv_layers,
                    total_layers=progress.layers,
                    transport=progress.transport,
                )
            )

    def received(self, choice: int, attempt: int, count: int, at: float) -> None:
        self._count.tokens += count
        mine = self._choices[choice]
        if mine.last_at:
            self._gaps.add(at - mine.last_at)
        mine.last_at = at
        if not mine.begun:
            mine.begun = True
            self._begin(choice, attempt, mine, at)
        elif at - mine.said_at >= _DECODE_EVERY:
            self._go_on(choice, attempt, mine, at)

    def left(self, leaving: Leaving) -> None:
        self._paces.left((self._id, leaving.attempt))
        message = leaving.how.message if isinstance(leaving.how, BatonError) else None
        self._feed.say(
            live.AttemptEnded(
                request=self._id,
                at=self._clock.unix(leaving.at),
                attempt=leaving.attempt,
                choice=leaving.choice,
                reason=leaving.reason,
                message=message,
                tokens=self._tale.tokens[leaving.choice],
            )
        )

    def ended(self, ending: Ending) -> None:
        tale = self._tale
        self._feed.say(
            live.Ended(
                request=self._id,
                at=self._clock.unix(ending.at),
                status=ending.status,
                reason=ending.reason,
                tokens=sum(tale.tokens.values()),
                cached_tokens=tale.cached_tokens,
                attempts=tale.attempts,
                ttft_ms=_ttft(tale),
                itl_p50_ms=milliseconds(self._gaps.percentile(0.5)) if len(self._gaps) else None,
                itl_max_ms=milliseconds(self._gaps.longest) if len(self._gaps) else None,
                total_ms=milliseconds(ending.at - tale.arrived),
            )
        )

    def _begin(self, choice: int, attempt: int, mine: _Choice, at: float) -> None:
        mine.said_at, mine.said_tokens = at, self._tale.tokens[choice]
        self._feed.say(
            live.FirstToken(
                request=self._id,
                at=self._clock.unix(at),
                attempt=attempt,
                choice=choice,
                ttft_ms=milliseconds(at - self._tale.arrived),
            )
        )

    def _go_on(self, choice: int, attempt: int, mine: _Choice, at: float) -> None:
        tokens = self._tale.tokens[choice]
        known = bool(mine.said_at)
        rate = (tokens - mine.said_tokens) / (at - mine.said_at) if known else 0.0
        mine.said_at, mine.said_tokens = at, tokens
        self._paces.streamed(mine.decode, at, rate)
        self._feed.say(
            live.Decode(
                request=self._id,
                at=self._clock.unix(at),
                attempt=attempt,
                choice=choice,
                tokens=tokens,
                tokens_per_s=round(rate, 1),
            )
        )


def standing(tale: Tale, clock: Clock) -> live.Request:
    """Where a request stands, for a snapshot."""
    place = tale.place
    phase = "queued" if place is None else "prefill"
    return live.Request(
        request=tale.request.request_id,
        arrived=clock.unix(tale.arrived),
        prompt_tokens=len(tale.request.prompt_ids),
        max_tokens=tale.request.sampling.max_tokens,
        choices=tale.request.n,
        phase=phase if tale.first_token_at is None else "decode",
        attempt=None if place is None else tale.attempts - 1,
        decode=None if place is None else live.short(place.decode.instance_id),
        prefill=_prefill(tale),
        tokens=sum(tale.tokens.values()),
        ttft_ms=_ttft(tale),
    )


def _ttft(tale: Tale) -> float | None:
    first = tale.first_token_at
    return None if first is None else milliseconds(first - tale.arrived)


def _prefill(tale: Tale) -> str | None:
    place = tale.place
    return None if place is None or place.prefill is None else live.short(place.prefill.instance_id)
