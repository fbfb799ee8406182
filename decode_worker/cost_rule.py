"""Where a prompt is computed: here, or on the prefill worker that the gateway chose. Pure.

The answer that is there sooner wins, and at a tie this worker, which sends no KV:

    here    (queued + missing) * c + a decode step for every chunk of these tokens: what a step
                                     that decodes has room for within the target (``beside_s``)
    there   (queued + missing) * c_there + transfer

c is seconds per prompt token. Little measured here, it leans on c_there: workers of one fleet
are often alike, and a first prompt measured cold must not decide for all that follow.

Where nothing decodes here, parts of a chunk count as parts of a step, and a long prompt is still
handed over unless it would wait there: whoever comes next is to decode at full speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from model.engine.costs import Costs, beside_s

#: Prompt tokens that must be measured here to weigh as much as what the other side measured.
_LEAN = 256


class Why(Enum):
    """What decided."""

    COLOCATED = "colocated"  #: here: this worker computes every prompt
    NO_TARGET = "no_target"  #: here: the gateway named no prefill worker, or this one
    CHEAPER = "cheaper"  #: here: sooner done
    DEARER = "dearer"  #: there: sooner done
    SWITCHED_OFF = "switched_off"  #: there: no prompt may queue here
    QUEUE_FULL = "queue_full"  #: there: the prompt is longer than what is left of the queue here
    UNMEASURED = "unmeasured"  #: there: what it costs is not known yet
    NO_BLOCKS = "no_blocks"  #: there: here no block is free to compute the last token in

    @property
    def local(self) -> bool:
        """Whether it speaks for this worker."""
        return self in (Why.COLOCATED, Why.NO_TARGET, Why.CHEAPER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What the decode worker knows of itself."""

    missing: int  #: tokens of the prompt to compute here
    queued: int  #: prompt tokens to compute before it
    queue_limit: int | None  #: how many may be queued in all, this prompt included; None: any
    decoding: bool  #: sequences are in the batch
    target_s: float  #: how long a step that decodes may last for the sake of prompts
    costs: Costs


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """What is known of the prefill worker."""

    missing: int  #: tokens of the prompt to compute there
    queued: int  #: prompt tokens to compute before it
    token_s: float  #: seconds per prompt token; 0 when unknown
    transfer_s: float  #: what the hand-off adds to the compute


@dataclass(frozen=True, slots=True)
class Choice:
    """Where, why, and what both would take, in seconds: None where that did not matter."""

    why: Why
    here_s: float | None = None
    there_s: float | None = None

    @property
    def local(self) -> bool:
        return self.why.local


def choose(here: Here, there: There) -> Choice:
    """Decide for one prompt. Anything not known yet speaks for the prefill worker."""
    tokens = here.queued + here.missing
    if here.queue_limit == 0:
        return Choice(Why.SWITCHED_OFF)
    if not there.token_s or (here.decoding and not here.costs.decode_step_s):
        return Choice(Why.UNMEASURED)
    if here.queue_limit is not None and tokens > here.queue_limit:
        return Choice(Why.QUEUE_FULL)
    token_s = _token_seconds(here.costs, there.token_s)
    step_s = here.costs.decode_step_s
    steps = tokens / max(1.0, beside_s(step_s, here.target_s) / token_s)
    here_s = tokens * token_s + (max(1.0, steps) if here.decoding else steps) * step_s
    there_s = (there.queued + there.missing) * there.token_s + there.transfer_s
    return Choice(Why.CHEAPER if here_s <= there_s else Why.DEARER, here_s, there_s)


def _token_seconds(costs: Costs, there: float) -> float:
    """Seconds per prompt token here: the mean of what was measured and of ``there``."""
    measured = costs.prefill_token_s * costs.prefill_tokens
    return (measured + there * _LEAN) / (costs.prefill_tokens + _LEAN)
