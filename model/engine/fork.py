"""Choices that share a prompt: how they part, and who copies what. No torch.

    the stem      reserved, computed or received like any sequence; has the prompt's blocks, and
                  a spare one for each choice that will have to write somewhere else
    it forks      the prompt is computed and the first token of every choice drawn: each choice is
                  a sequence of its own now, that has the stem's blocks beside the others; the
                  stem is no more
    one grows     its next token needs a place. In the last block, if that is partial and no one
                  else has it any more; in a copy of it otherwise (copy on write); or in a new one

Who copies finds the others' tokens nowhere: the copy is made before the step writes anything, and
of the copied block only positions that all of them have are ever read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Ids
from dataclasses import replace

from baton.errors import InternalError
from baton.generation import finish_reason
from model.cache.blocks import BlockPool
from model.engine.events import Event, SequenceFailed, SequenceTimings, TokenSampled
from model.engine.plan import Copy, StepResult
from model.engine.sequence import Phase, Sequence


class Stems:
    """Finds the stem of a choice that has no sequence of its own yet."""

    def __init__(self) -> None:
        self._by_choice: dict[int, Sequence] = {}

    def name(self, stem: Sequence, first_id: int) -> int:
        """Give each choice of ``stem`` a seq_id, from ``first_id`` on; the next that is free."""
        for seq_id, choice in enumerate(stem.request.choices, start=first_id):
            stem.choices[seq_id] = choice
            self._by_choice[seq_id] = stem
        return first_id + len(stem.choices)

    def cancel(self, seq_id: int) -> Sequence | None:
        """A choice is not wanted any more; its stem, if none of its choices is."""
        stem = self._by_choice.pop(seq_id, None)
        if stem is None:
            return None
        del stem.choices[seq_id]
        return None if stem.choices else stem

    def forget(self, stem: Sequence) -> None:
        """Its choices have sequences of their own, or have ended with it."""
        for seq_id in stem.choices:
            del self._by_choice[seq_id]
        stem.choices = {}


def first_tokens(
    stem: Sequence, result: StepResult, timings: SequenceTimings
) -> tuple[dict[int, int], list[Event]]:
    """What a step drew for the choices of ``stem`` that are still wanted, by their seq_ids, and
    what is to be told of it."""
    drawn, events = dict[int, int](), list[Event]()
    index = len(stem.generated_ids)
    for seq_id in stem.choices:
        token = result.tokens.get(seq_id)
        if token is None:
            missing = InternalError(f"step {result.step} sampled nothing for {seq_id}")
            events.append(SequenceFailed(seq_id, result.errors.get(seq_id, missing)))
            continue
        drawn[seq_id] = token
        finish = finish_reason(index + 1, token, stem.request.spec)
        logprobs = result.logprobs.get(seq_id)
        events.append(TokenSampled(seq_id, token, index, finish, timings, logprobs))
    return drawn, events


class Forks:
    """Blocks that go from a stem to its choices, and the copies that its choices need."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._copies: list[Copy] = []
        self._sources: list[int] = []  # held, whoever else ends, until the step has copied them

    def fork(self, stem: Sequence, tokens: Mapping[int, int]) -> list[Sequence]:
        """A sequence for each choice in ``tokens`` (seq_id -> first token), with the stem's KV.

        The stem is computed in full. It has no blocks afterwards.
        """
        partial = stem.length % stem.block_size > 0
        going_on = [(i, choice) for i, choice in stem.choices.items() if i in tokens]
        children = [_child(stem, seq_id, choice, partial) for seq_id, choice in going_on]
        for _ in children:
            self._pool.share(stem.blocks)
        # The last one to grow will be the last one to have the partial block.
        for child in children[:-1] if partial else children:
            child.spare = [stem.spare.pop()]
        self._pool.release([*stem.blocks, *stem.spare])
        stem.blocks, stem.spare = [], []
        return children

    def grow(self, seq: Sequence) -> bool:
        """Make room for the next token of a decoding choice; False when there is no block."""
        last = seq.blocks[-1]
        if seq.forked and self._pool.owners(last) == 1:
            seq.own_last(last)
            return True
        block = seq.spare or self._pool.allocate(1)
        if block is None:
            return False
        seq.spare = []
        if not seq.forked:
            seq.blocks += block
            seq.room += seq.block_size
            return True
        self._copies.append(Copy(last, block[0]))
        self._pool.hold([last])
        self._sources.append(last)
        seq.own_last(block[0])
        self._pool.release([last])
        return True

    def take_copies(self) -> tuple[Copy, ...]:
        """What the next step copies before it writes."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def step_ended(self) -> None:
        """The copies are made."""
        self._pool.unhold(self._sources)
        self._sources = []

    @property
    def sources(self) -> Ids[int]:
        """Blocks held because they are being copied."""
        return self._sources

    def sharers(self, live: Collection[Sequence]) -> Counter[int]:
        """How many choices have each partial block that none of them has written to yet."""
        return Counter(seq.blocks[-1] for seq in live if seq.forked)


def _child(stem: Sequence, seq_id: int, choice: int, partial: bool) -> Sequence:
    """A choice of ``stem`` where it stands, before its first token."""
    child = Sequence(
        seq_id=seq_id,
        request=replace(stem.request, choice_index=choice, more_choices=()),
        block_size=stem.block_size,
        blocks=list(stem.blocks),
        keys=list(stem.keys),
        cached=stem.cached,
        computed=stem.length,
        published=stem.published,
        promised=stem.promised,
        phase=Phase.KEPT,
        created_s=stem.created_s,
        rank=(stem.rank[0], seq_id),
        shared=stem.shared,
        started_s=stem.started_s,
        prefill_s=stem.prefill_s,
        steps=stem.steps,
    )
    if partial:
        child.share_last()
    return child
