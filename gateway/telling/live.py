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

#: Seconds that a rate is taken over, at least.
_LEAST = 0.1


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
    tokens: int  #: that were told of
    at: float | None = None  #: when
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
        place = tale.place
        decode = "" if place is None else live.short(place.decode.instance_id)
        self._choices = {c: _Choice(tokens, decode=decode) for c, tokens in tale.tokens.items()}

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
        place, at = placing.place, placing.at
        decode, prefill = live.short(place.decode.instance_id), _prefill(self._tale)
        for choice in placing.choices:
            self._choices[choice].decode = decode
        prompt = self._id, placing.attempt
        self._paces.computed(prefill or decode, prompt, at, place.cached, placing.tokens)
        self._feed.say(
            live.Placed(
                request=self._id,
                at=self._clock.unix(at),
                attempt=placing.attempt,
                choices=list(placing.choices),
                decode=decode,
                prefill=prefill,
                policy=placing.policy,
                tokens=placing.tokens,
                cached=place.cached,
                waited_ms=milliseconds(at - placing.since),
            )
        )

    def progressed(self, attempt: int, progress: Progress, at: float) -> None:
        unix, worker = self._clock.unix(at), live.short(progress.prefill_instance_id)
        computed, total = progress.computed_tokens, progress.total_tokens
        cached = progress.cached_tokens
        self._paces.computed(worker, (self._id, attempt), at, computed, total, cached)
        self._feed.say(
            live.Prefill(
                request=self._id,
                at=unix,
                attempt=attempt,
                worker=worker,
                computed=computed,
                cached=cached,
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

    def begun(self, choice: int, attempt: int, at: float) -> None:
        self._counted(choice, at)
        request = self._tale.request
        total = len(request.prompt_ids) + len(request.generated_ids)
        self._paces.begun((self._id, attempt), at, total)
        self._feed.say(
            live.FirstToken(
                request=self._id,
                at=self._clock.unix(at),
                attempt=attempt,
                choice=choice,
                ttft_ms=milliseconds(at - self._tale.arrived),
            )
        )

    def look(self, at: float) -> None:
        """Tell how far each choice is that has gone on since the last time."""
        for choice, mine in self._choices.items():
            since = mine.at
            if since is not None and at - since < _LEAST:
                continue
            if count := self._counted(choice, at):
                self._go_on(choice, 0.0 if since is None else count / (at - since), at)

    def _counted(self, choice: int, at: float) -> int:
        """Tokens of a choice that nobody was told of so far."""
        mine, tokens = self._choices[choice], self._tale.tokens[choice]
        count = tokens - mine.tokens
        if count:
            mine.tokens, mine.at = tokens, at
            self._count.tokens += count
        return count

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
        for choice in self._choices:
            self._counted(choice, ending.at)
        gaps = Gaps.together(arrivals.gaps for arrivals in tale.arrivals.values())
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
                itl_p50_ms=milliseconds(gaps.percentile(0.5)) if len(gaps) else None,
                itl_max_ms=milliseconds(gaps.longest) if len(gaps) else None,
                total_ms=milliseconds(ending.at - tale.arrived),
            )
        )

    def _go_on(self, choice: int, rate: float, at: float) -> None:
        mine = self._choices[choice]
        self._paces.streamed(mine.decode, at, rate)
        self._feed.say(
            live.Decode(
                request=self._id,
                at=self._clock.unix(at),
                attempt=self._tale.latest[choice],
                choice=choice,
                tokens=mine.tokens,
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
