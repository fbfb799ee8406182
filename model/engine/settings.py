"""The limits of one engine, and which requests can never fit them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from baton.errors import ContextLengthExceeded, InvalidRequest, WorkerFull
from baton.settings import PrefillOrder
from model.engine.sequence import Sequence, SequenceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """Limits of one engine. Raises ValueError when they contradict one another."""

    block_size: int  #: tokens per KV block
    max_model_len: int  #: longest prompt + max_tokens the model was made for
    max_tokens_per_step: int
    chunk_tokens: int  #: most tokens of one prompt in one step
    max_running: int  #: sequences in one step
    prefill_order: PrefillOrder  #: which prompts are computed first (``order.py``)
    keep_blocks: int | None = None  #: quota of ``keep`` sequences on a worker of both roles
    #: How long a step that decodes may last for the sake of prompts (``StepCosts.allowance``),
    #: seconds; inf: as long as it takes.
    itl_target_s: float = math.inf

    def __post_init__(self) -> None:
        for name in ("block_size", "max_model_len", "chunk_tokens", "max_running"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.itl_target_s <= 0:
            raise ValueError(f"itl_target_s is {self.itl_target_s}, not above 0")
        if self.max_tokens_per_step <= self.max_running:
            raise ValueError(
                f"--max-step-tokens is {self.max_tokens_per_step}, but must be above "
                f"--max-running, {self.max_running}: a full batch leaves no room for a prompt"
            )

    def quota(self, request: SequenceRequest, num_blocks: int) -> int:
        """Blocks of a pool of ``num_blocks`` that sequences of the request's kind can count on.

        On a worker of both roles ``keep`` sequences never get more than ``keep_blocks``; the
        others may borrow of those but must fit the rest, so neither kind waits for the other.
        """
        if self.keep_blocks is None:
            return num_blocks
        return self.keep_blocks if request.keep else num_blocks - self.keep_blocks

    def longest(self, num_blocks: int) -> int:
        """Tokens of the longest sequence that may come, of whichever kind."""
        blocks = num_blocks
        if self.keep_blocks is not None:
            blocks = min(self.keep_blocks, num_blocks - self.keep_blocks)
        return min(self.max_model_len, blocks * self.block_size)

    def require_fits(self, request: SequenceRequest, num_blocks: int) -> None:
        """Raise ContextLengthExceeded, naming both numbers, for what can never be served,
        WorkerFull for what only the quota forbids, and InvalidRequest for more choices than may
        run at once."""
        prompt, asked = len(request.prompt_ids), request.spec.max_tokens
        if prompt + asked > self.max_model_len:
            raise ContextLengthExceeded(
                f"a prompt of {prompt} tokens and max_tokens of {asked} make {prompt + asked}, "
                f"but the context length is {self.max_model_len}"
            )
        if not request.keep and len(request.choices) > self.max_running:
            raise InvalidRequest(
                f"{len(request.choices)} choices are asked for, but this worker runs at most "
                f"{self.max_running} sequences",
                param="n",
            )
        needed = prompt + (len(request.generated_ids) if request.keep else asked)
        quota, blocks = self.quota(request, num_blocks), request.blocks(self.block_size)
        capacity = num_blocks * self.block_size
        if needed > capacity:
            raise ContextLengthExceeded(
                f"the sequence needs room for {needed} tokens, "
                f"but this worker's KV pool has room for {capacity}"
            )
        if blocks > num_blocks:
            raise ContextLengthExceeded(
                f"{len(request.choices)} choices of a prompt of {prompt} tokens begin with "
                f"{blocks} KV blocks, but this worker's pool has {num_blocks}"
            )
        if max(needed, blocks * self.block_size) > (share := quota * self.block_size):
            # It fitted before the worker took its other role, and fits elsewhere.
            raise WorkerFull(
                f"the sequence needs room for {needed} tokens, but beside its other role this "
                f"worker has room for {share}"
            )

    def keep_room(self, live: Iterable[Sequence]) -> int | None:
        """Blocks that ``keep`` sequences may still take; None where they have no quota."""
        if self.keep_blocks is None:
            return None
        return max(0, self.keep_blocks - sum(len(s.blocks) for s in live if s.request.keep))

    def has_room(self, request: SequenceRequest, live: Iterable[Sequence]) -> bool:
        """Whether the quota of sequences that are kept has room beside those that are ``live``.

        Raises WorkerFull when too many sequences would run at once.
        """
        if request.keep:
            room = self.keep_room(live)
            return room is None or request.blocks(self.block_size) <= room
        count = sum(max(1, len(seq.choices)) for seq in live if not seq.request.keep)
        if count + len(request.choices) > self.max_running:
            raise WorkerFull(
                f"{count} sequences are live and {len(request.choices)} more are asked for, but "
                f"max_running is {self.max_running}"
            )
        return True
