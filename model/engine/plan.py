"""One engine step as values: what the scheduler decides, what the runner answers.

A plan is complete: the runner needs nothing else to execute it, and a test can assert on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from baton.errors import BatonError
from baton.generation import TokenLogprobs
from baton.grammars import Constraint
from baton.sampling import SamplingSpec


@dataclass(frozen=True, slots=True)
class Sample:
    """Asks for the next token after the last one of a slice.

    ``prompt_ids`` and ``generated_ids`` are the sequence's own lists, read, never written.
    """

    spec: SamplingSpec
    prompt_ids: Sequence[int]
    generated_ids: Sequence[int]
    choice_index: int = 0
    constraint: Constraint | None = None  #: what a grammar lets come next; None: anything


@dataclass(slots=True)
class Slice:
    """The tokens of one sequence that one step computes.

    The tokens stand at positions ``start .. start + len(token_ids) - 1``. ``block_table`` covers
    at least every position up to the last of them; entry i holds positions
    ``i * block_size .. (i + 1) * block_size - 1``. KV of all positions below ``start`` is in place.

    A value like the others, never written; only not declared frozen, because one is made per
    sequence and step and that costs four times as much.
    """

    seq_id: int
    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    sample: Sample | None = None  #: None for a prefill chunk that is not the last
    export: bool = False  #: announce each layer when it is written (a prefill worker's hand-off)
    #: In place of ``sample``, where several choices go on from here: the first token of each,
    #: (seq_id, what to draw), all from the same logits.
    draws: tuple[tuple[int, Sample], ...] = ()

    @property
    def end(self) -> int:
        """The position after the last token computed."""
        return self.start + len(self.token_ids)

    @property
    def asked(self) -> tuple[tuple[int, Sample], ...]:
        """What to draw from the logits after the last token, each for a sequence."""
        return self.draws if self.sample is None else ((self.seq_id, self.sample),)


class Copy(NamedTuple):
    """A whole block, in all layers, that two sequences go on from: copy on write."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step runs: every slice packed in one forward pass, without padding.

    Before that all ``copies`` are made, each of what its source was before the step.
    """

    step: int
    slices: tuple[Slice, ...]
    copies: tuple[Copy, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.slices)

    @property
    def decodes(self) -> int:
        """Sequences that only take a decode step (one token, sampled)."""
        return sum(1 for s in self.slices if len(s.token_ids) == 1 and s.sample is not None)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step drew, by seq_id."""

    tokens: dict[int, int] = field(default_factory=dict)
    errors: dict[int, BatonError] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)  #: where they are asked for


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step computed. Every sequence that a slice has ``asked`` for is in ``tokens`` or in
    ``errors``; the slice's own is in ``errors`` if it failed as a whole."""

    step: int
    tokens: dict[int, int]  #: seq_id -> the sampled token id
    errors: dict[int, BatonError] = field(default_factory=dict)  #: e.g. KvOverflow
    compute_s: float = 0.0
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)  #: of those that asked
