"""Where a choice stands between its attempts: all that the next one needs to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.errors import (
    BatonError,
    CapacityError,
    DecodeLost,
    DecodeSilent,
    HandoffFailed,
    IncompatiblePeer,
    Preempted,
    PrefillDraining,
    PrefillFull,
    PrefillLost,
    PrefillSilent,
    RelayRefused,
    WorkerFull,
)
from baton.generation import (
    AttemptKey,
    FinishReason,
    Generation,
    TokenLogprobs,
    finish_reason,
)
from baton.identity import Family
from gateway.attempt import Attempt
from gateway.booking import Booking
from gateway.caches import Prefix
from gateway.explanation import Trail
from gateway.fleet import Worker
from gateway.patience import Patience
from gateway.placement import Need, Place
from gateway.requests import ValidRequest
from gateway.telling.tale import Tale
from gateway.waiting import Turn


@dataclass(frozen=True, slots=True)
class Run:
    """An attempt that is running, where, and what it takes up there."""

    attempt: Attempt
    place: Place
    booking: Booking


@dataclass(slots=True)
class Course:
    """One choice of a request over all its attempts."""

    request: ValidRequest
    choice: int
    turn: Turn  #: in the waiting room
    patience: Patience
    tale: Tale
    trail: Trail | None = None  #: wants to know where attempts were placed, and why
    #: Every token received, those not yet shown included: what the next attempt continues.
    generated: list[int] = field(init=False)
    #: Prompt tokens that nobody computed for the attempt that gave the first token; None until
    #: a worker has said so. Later attempts find what that one left in the caches.
    cached_tokens: int | None = None
    #: Of tokens received and not given on yet, where they are asked for.
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    attempts: int = 0
    run: Run | None = None
    #: Where the last attempt was: its cache may still hold the blocks.
    last: Place | None = None
    booking: Booking | None = None  #: of that attempt, which may have ended
    family: Family | None = None
    workers: str = ""  #: its digest
    _kept: tuple[Worker, int] | None = None
    #: Instances that failed this request since its last token.
    avoid: set[str] = field(default_factory=set)
    #: Decode workers whose session broke once since then; they may live.
    lost: set[str] = field(default_factory=set)
    _prefix: Prefix | None = None

    def __post_init__(self) -> None:
        self.generated = list(self.request.generated_ids)

    @property
    def tokens(self) -> int:
        """Of prompt and answer so far."""
        return len(self.request.prompt_ids) + len(self.generated)

    def need(self, choices: int) -> Need:
        """What placement has to find for so many that stand here."""
        request = self.request
        return Need(
            model=request.model,
            tokens=self.tokens,
            longest=len(request.prompt_ids) + request.sampling.max_tokens,
            choices=choices,
            family=self.family,
            avoid=frozenset(self.avoid),
            prefer=self.last.decode.instance_id if self.last is not None else "",
            local_prefill=self.attempts > 0,
            prefix=self.prefix,
            explain=self.trail is not None,
        )

    @property
    def prefix(self) -> Prefix:
        """Prompt and generated ids, as caches know them; kept, as placing may take many tries."""
        ids = self.request.prompt_ids
        if self._prefix is None or len(self._prefix) != len(ids) + len(self.generated):
            known = (*ids, *self.generated) if self.generated else ids
            self._prefix = Prefix(known, self.request.caller.cache_salt, self.request.session)
        return self._prefix

    def next_generation(self, others: Sequence[Course], traceparent: str) -> Generation:
        """The attempt to submit now, within that trace. No attempt number is used twice.

        ``others`` are choices that stand where this one does, and begin with it.
        """
        request = self.request
        key = AttemptKey(request.request_id, self.attempts, self.choice)
        for course in (self, *others):
            course.attempts += 1
        return Generation(
            key=key,
            prompt_ids=request.prompt_ids,
            generated_ids=tuple(self.generated),
            sampling=request.sampling,
            deadlines=request.deadlines.after(self.patience.elapsed, started=self.patience.started),
            priority=request.priority,
            cache_salt=request.caller.cache_salt,
            traceparent=traceparent,
            more_choices=tuple(course.choice for course in others),
        )

    def started(self, run: Run) -> None:
        """From now on the request stays in this class: only there is a replay exact."""
        self.run = run
        self.last, self.booking = run.place, run.booking
        if self.trail is not None:
            self.trail.add(run.place.explanation)
        self.family = run.place.decode.report.identity.family
        self.workers = self.family.digest

    def received(self, tokens: list[int]) -> None:
        """Progress: what failed before is forgiven."""
        if self.cached_tokens is None and not self.patience.started and self.run is not None:
            self.tale.cached_tokens = self.cached_tokens = self.run.attempt.cached_tokens
        self.generated += tokens
        if self.run is not None:
            self.logprobs += self.run.attempt.logprobs(len(tokens))
        if self.avoid or self.lost:
            self.avoid.clear()
            self.lost.clear()

    def take_logprobs(self) -> list[TokenLogprobs]:
        """Of the tokens that are given on now."""
        taken, self.logprobs = self.logprobs, []
        return taken

    def complete(self) -> FinishReason | None:
        """Whether the tokens received are all there will be, though the worker died unsaid."""
        if not self.generated:
            return None
        return finish_reason(len(self.generated), self.generated[-1], self.request.sampling)

    def keep_room(self) -> None:
        """Until it is placed again no new request gets the blocks that it had where it was last, so
        that its KV stays in that cache."""
        self.give_up_room()
        if self.last is not None and self.last.decode.instance_id not in self.avoid:
            decode = self.last.decode
            self._kept = decode, decode.blocks(self.tokens)
            decode.keep(self._kept[1])

    def give_up_room(self) -> None:
        """Idempotent."""
        if self._kept is not None:
            (decode, blocks), self._kept = self._kept, None
            decode.keep(-blocks)

    def learn(self, error: BatonError, now: float) -> None:
        """Note what the next placement should avoid, after what went wrong, and whose fault it
        was."""
        faulty = self._avoid(error)
        if faulty is not None and self.booking is not None:
            self.booking.failed(faulty, now, silent=isinstance(error, DecodeSilent | PrefillSilent))

    def _avoid(self, error: BatonError) -> Worker | None:
        """Returns the worker that failed, if one did."""
        if self.last is None:
            return None
        decode, prefill = self.last.decode, self.last.prefill
        match error:
            case PrefillFull() if prefill is not None:
                prefill.refused()
            case WorkerFull():
                decode.refused()
            case PrefillDraining() if prefill is not None:
                self.avoid.add(prefill.instance_id)
            case PrefillLost() | RelayRefused() | HandoffFailed() | IncompatiblePeer() if (
                prefill is not None
            ):
                self.avoid.add(prefill.instance_id)
                return prefill
            case Preempted():
                pass  # the same worker first: its cache may still hold the blocks
            case DecodeLost() if not (
                isinstance(error, DecodeSilent) or decode.instance_id in self.lost
            ):
                self.lost.add(decode.instance_id)
                return decode
            case CapacityError():  # it leaves, or says what only a later version knows
                self.avoid.add(decode.instance_id)
            case _:
                self.avoid.add(decode.instance_id)
                return decode
        return None
