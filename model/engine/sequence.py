"""One request's record on one worker: its tokens, how many of them have KV, and its blocks."""

from __future__ import annotations

from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from baton.errors import InvalidRequest
from baton.generation import FinishReason, finish_reason
from baton.grammars import Constraint
from baton.identity import Role
from baton.sampling import SamplingSpec
from model.engine.events import SequenceTimings
from model.engine.plan import Sample, Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """What a worker asks its engine to do with one choice of one request, or with several that
    begin as one.

    Two flags tell the three uses apart:

    - neither: compute the prompt here and generate to the end (colocated, local prefill);
    - ``receive``: reserve blocks; KV of what is not cached comes from a prefill worker;
    - ``keep``: compute the prompt here, sample one token, then keep the blocks for the hand-off
      until ``release`` (the prefill worker). Its ``finish_reason`` is that of the whole
      request: None unless that one token ends it.

    Raises InvalidRequest when there is nothing to compute or nothing left to generate.
    """

    prompt_ids: tuple[int, ...]
    spec: SamplingSpec
    generated_ids: tuple[int, ...] = ()  #: by earlier attempts; the continuation depends on them
    salt: bytes = b""  #: equal salts may share cached blocks
    priority: int = 0  #: larger goes first, until others have waited long (``order.py``)
    choice_index: int = 0
    more_choices: tuple[int, ...] = ()  #: that begin with it; each becomes a sequence of its own
    keep: bool = False
    export: bool = False  #: emit LayerReady for every slice
    receive: bool = False
    constraint: Constraint | None = None  #: of ``spec.grammar``; each sequence forks its own
    tell: bool = False  #: emit ChunkComputed

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        if len(self.generated_ids) >= self.spec.max_tokens:
            raise InvalidRequest(
                f"max_tokens is {self.spec.max_tokens}, but {len(self.generated_ids)} tokens "
                "are generated already",
                param="max_tokens",
            )
        if self.receive and (self.keep or self.export):
            raise ValueError("a sequence that receives its KV neither keeps nor exports it")

    @property
    def role(self) -> Role:
        """In which the worker serves it."""
        return Role.PREFILL if self.keep else Role.DECODE

    @property
    def choices(self) -> tuple[int, ...]:
        return (self.choice_index, *self.more_choices)

    def blocks(self, block_size: int) -> int:
        """Blocks to reserve at once: for prompt and generated ids and, where several choices go
        on from them here, for the next token of each. One choice takes that when it needs it."""
        tokens = len(self.prompt_ids) + len(self.generated_ids)
        if self.more_choices and not self.keep:
            # One of them goes on in the last, partial block of the tokens, if there is one.
            return tokens // block_size + len(self.choices)
        return -(-tokens // block_size)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What ``add`` set aside. KV of the first ``hit_tokens`` positions is in place.

    Of several choices ``seq_id`` is the stem: what they have in common, until they part. The ids
    in ``choices`` are those that each goes by from its first token on.
    """

    seq_id: int
    hit_tokens: int  #: a multiple of the block size
    total_tokens: int  #: prompt and generated ids
    block_table: tuple[int, ...]  #: covers ``total_tokens``
    queued_tokens: int  #: tokens in the compute queue before this sequence
    choices: tuple[int, ...] = ()  #: seq_ids of several choices; empty for one


@dataclass(frozen=True, slots=True)
class Hold:
    """Keeps blocks of a sequence from reuse, even after it has ended, until ``unhold``."""

    hold_id: int
    seq_id: int
    blocks: tuple[int, ...]


class Phase(Enum):
    AWAITING_KV = auto()  #: blocks reserved; someone writes KV into them
    PREFILLING = auto()  #: in the compute queue until its first token is sampled
    DECODING = auto()  #: in the batch: exactly its last token has no KV
    KEPT = auto()  #: computed; blocks stay owned until ``release``
    ENDED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """A live sequence. Written by the scheduler alone, under the engine's lock.

    Invariant, asserted by ``check`` (positions are counted in tokens from 0):

        0 <= cached <= computed <= min(length, room)  and  length <= limit

    with ``computed == length - 1`` while DECODING and ``computed < length`` while PREFILLING.
    The block table never shrinks while the sequence lives, so a running step may read it, and once
    it decodes, or from the start if it is handed over, the table only grows. (A choice that has to
    copy its last block gets another table.)

    The stem of several choices lives until its prompt is computed; see ``fork.py``.
    """

    seq_id: int
    request: SequenceRequest
    block_size: int
    blocks: list[int]
    keys: list[bytes]  #: of its full blocks, as far as they were made
    cached: int  #: tokens found in the prefix cache; a multiple of the block size
    computed: int  #: tokens whose KV is in the blocks
    published: int  #: blocks that were offered to the prefix cache, or come from there
    promised: int  #: tokens that other sequences may compute for it; a multiple of the block size
    phase: Phase
    created_s: float
    rank: tuple[int, int]  #: (``order.arrival``, seq_id): smaller goes first
    prompt_ids: tuple[int, ...] = field(init=False)
    generated_ids: list[int] = field(init=False)
    sample: Sample = field(init=False)  #: made once: it refers to the lists above
    room: int = field(init=False)  #: tokens that ``blocks`` can take
    shared: int = 0  #: tokens that others have computed for it since it was added
    choices: dict[int, int] = field(default_factory=dict)  #: a stem's: seq_id -> choice index
    spare: list[int] = field(default_factory=list)  #: blocks to go on in, not in the table yet
    #: Other choices may have the last block, a partial one, too: nothing may be written to it.
    forked: bool = False
    lagging: bool = False  #: what is computed of it is read too slowly: others go first
    started_s: float | None = None  #: when its first step was planned
    prefill_s: float = 0.0
    decode_base_s: float = 0.0  #: the engine's compute total when it began to decode
    steps: int = 0  #: prefill steps
    decode_base_step: int | None = None  #: and its count of steps

    def __post_init__(self) -> None:
        request = self.request
        self.prompt_ids = request.prompt_ids
        self.generated_ids = list(request.generated_ids)
        constraint = None if request.constraint is None else request.constraint.fork()
        self.sample = Sample(
            request.spec, self.prompt_ids, self.generated_ids, request.choice_index, constraint
        )
        self.room = len(self.blocks) * self.block_size

    # -- derived ---------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Tokens known: prompt and generated."""
        return len(self.prompt_ids) + len(self.generated_ids)

    @property
    def limit(self) -> int:
        """The length it can reach."""
        return len(self.prompt_ids) + self.request.spec.max_tokens

    @property
    def missing(self) -> int:
        """Tokens that must be computed before the next one can be sampled."""
        return self.length - self.computed

    @property
    def tail(self) -> int:
        """Missing tokens that it must compute itself."""
        return self.length - max(self.computed, self.promised)

    def tokens(self, start: int, end: int) -> TokenIds[int]:
        """The token ids at positions start .. end - 1."""
        border = len(self.prompt_ids)
        if start >= border:
            return self.generated_ids[start - border : end - border]
        if end <= border:
            return self.prompt_ids[start:end]
        return (*self.prompt_ids[start:], *self.generated_ids[: end - border])

    def next_slice(self, count: int) -> Slice:
        """The next ``count`` tokens to compute; it samples if they reach the last token."""
        start, end = self.computed, self.computed + count
        sample, draws = None, tuple[tuple[int, Sample], ...]()
        if end == self.length and self.choices:
            draws = tuple((i, self._first_of(choice)) for i, choice in self.choices.items())
        elif end == self.length:
            sample = self.sample
        tokens, export = self.tokens(start, end), self.request.export
        return Slice(self.seq_id, tokens, start, self.blocks, sample, export, draws)

    def _first_of(self, choice: int) -> Sample:
        return replace(self.sample, choice_index=choice)

    def timings(self, compute_total_s: float, step: int) -> SequenceTimings:
        """Where its time went, given the engine's counters of compute time and steps."""
        queued = 0.0 if self.started_s is None else self.started_s - self.created_s
        decode_s, steps = 0.0, self.steps
        if self.decode_base_step is not None:
            decode_s = compute_total_s - self.decode_base_s
            steps += step - self.decode_base_step
        cached = self.cached + self.shared
        return SequenceTimings(queued, self.prefill_s, decode_s, steps, cached)

    # -- changes ---------------------------------------------------------------------------

    def share_last(self) -> None:
        """Others have the last block, a partial one, too: there is no room in it for now."""
        self.forked, self.room = True, self.computed

    def own_last(self, block: int) -> None:
        """``block`` is the last one now, a copy if it is another: the sequence's alone."""
        if block != self.blocks[-1]:
            self.blocks = [*self.blocks[:-1], block]
        self.forked, self.room = False, len(self.blocks) * self.block_size

    def append(self, token_id: int) -> FinishReason | None:
        """Append a sampled token; says whether, and why, generation ends with it."""
        self.generated_ids.append(token_id)
        return finish_reason(len(self.generated_ids), token_id, self.request.spec)

    def check(self) -> list[str]:
        """Violations of the invariant, one line each."""
        ordered = (
            0 <= self.cached <= self.computed <= min(self.length, self.room)
            and self.length <= self.limit
            and self.room == (self.computed if self.forked else len(self.blocks) * self.block_size)
            and self.published <= self.computed // self.block_size
            and self.promised <= self.length
        )
        missing = {
            Phase.PREFILLING: self.missing >= 1,
            Phase.DECODING: self.missing == 1,
            Phase.KEPT: self.missing == (0 if self.request.more_choices else 1),
            Phase.AWAITING_KV: self.computed == self.cached,
            Phase.ENDED: not self.blocks,
        }[self.phase]
        if ordered and missing:
            return []
        return [
            f"sequence {self.seq_id} ({self.phase.name}): cached {self.cached}, computed "
            f"{self.computed}, length {self.length}, room {self.room}, limit {self.limit}"
        ]
