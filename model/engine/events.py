"""What the engine tells the worker: frozen values, emitted on the engine thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from baton.errors import BatonError
from baton.generation import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class SequenceTimings:
    """Where a sequence's time went on this worker so far, in seconds of the engine's clock."""

    queued_s: float  #: from entering the compute queue to the first step (0 for received KV)
    prefill_s: float  #: compute time of the steps that took its prefill chunks
    decode_s: float  #: compute time of the steps since its first decode
    steps: int  #: steps that computed tokens of it
    cached_tokens: int  #: tokens found in the prefix cache, or computed by another meanwhile


@dataclass(slots=True)
class TokenSampled:
    """A token was drawn. A value like the others; only not declared frozen, because one is made
    per sequence and step and that costs four times as much."""

    seq_id: int
    token_id: int
    index: int  #: position among all generated ids, those of earlier attempts included
    finish_reason: FinishReason | None = None  #: set: the sequence has ended (see SequenceRequest)
    timings: SequenceTimings | None = None  #: with the first token sampled here and the last
    logprobs: TokenLogprobs | None = None  #: where the request asks for them


@dataclass(frozen=True, slots=True)
class LayerReady:
    """K and V of ``layer`` up to position ``end`` (exclusive) are in the pool and may be read."""

    seq_id: int
    layer: int
    end: int
    at: float  #: when, on the engine's clock (on a GPU: when it was enqueued)


@dataclass(frozen=True, slots=True)
class ChunkComputed:
    """KV of a prompt is computed up to position ``end`` (exclusive), and more of it is to come; for
    sequences that ask for it (``SequenceRequest.tell``)."""

    seq_id: int
    end: int


@dataclass(frozen=True, slots=True)
class PrefixShared:
    """K and V of every layer up to position ``end`` (exclusive) are in the pool and may be read:
    another sequence has computed them, in blocks that both own."""

    seq_id: int
    end: int  #: a multiple of the block size
    at: float  #: when it was noticed, on the engine's clock


@dataclass(frozen=True, slots=True)
class SequenceFailed:
    """The sequence has ended early: its blocks are given up. ``error`` says why, and whether
    another attempt could mend it; its ``__cause__``, where set, is for the log."""

    seq_id: int
    error: BatonError


@dataclass(frozen=True, slots=True)
class SequencePreempted:
    """The sequence gave its blocks to an older one; its full blocks are in the prefix cache."""

    seq_id: int


Event: TypeAlias = (
    TokenSampled | LayerReady | ChunkComputed | PrefixShared | SequenceFailed | SequencePreempted
)
