"""Drives a TorchRunner by hand, without an engine: block tables, chunks, steps, logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baton.sampling import SamplingSpec
from model.engine.plan import Copy, Sample, Slice, StepPlan, StepResult
from model.engine.torch_runner import TorchRunner, load_runner

Logits = npt.NDArray[np.float32]
GREEDY = SamplingSpec(temperature=0)
#: A bias, even of nothing, is the host sampler's business: it sees the logits on any device.
SEEN = SamplingSpec(temperature=0, logit_bias={0: 0.0})


class Driver:
    """Keeps the tokens and blocks of a few sequences; its sampler is argmax and keeps logits."""

    def __init__(self, runner: TorchRunner, seen: list[Logits]) -> None:
        self.runner = runner
        self._seen = seen
        self._free = list(range(runner.num_blocks))
        self._tokens: dict[int, list[int]] = {}
        self._tables: dict[int, list[int]] = {}
        self._copies: list[Copy] = []
        self._steps = 0

    @classmethod
    def load(cls, directory: Path, **options: Any) -> Driver:
        seen: list[Logits] = []

        def sampler(logits: Logits, sample: Sample) -> int:
            seen.append(logits.copy())
            return int(logits.argmax())

        options = {"num_blocks": 64, "block_size": 16, "threads": 1} | options
        return cls(load_runner(directory, sampler=sampler, **options), seen)

    def piece(self, seq: int, tokens: Sequence[int], *, sample: bool, **more: Any) -> Slice:
        """The next tokens of a sequence as a slice; blocks are taken as they are needed, from
        both ends of the free list in turn so that tables are not contiguous."""
        known = self._tokens.setdefault(seq, [])
        table = self._tables.setdefault(seq, [])
        start = len(known)
        known += tokens
        while len(table) * self.runner.compatibility.block_size < len(known):
            table.append(self._free.pop(0 if len(self._free) % 2 else -1))
        asked = Sample(SEEN, known, ()) if sample else None
        return Slice(seq, list(tokens), start, list(table), asked, **more)

    def adopt(self, seq: int, other: int, tokens: int) -> None:
        """Start a sequence on whole blocks of another, as a prefix cache would."""
        size = self.runner.compatibility.block_size
        self._tokens[seq] = self._tokens[other][:tokens]
        self._tables[seq] = self._tables[other][: tokens // size]

    def fork(self, seq: int, other: int) -> None:
        """Start a sequence on the blocks of another, the last of them copied by the next step."""
        self._tokens[seq] = list(self._tokens[other])
        self._tables[seq] = [*self._tables[other][:-1], self._free.pop()]
        self._copies.append(Copy(self._tables[other][-1], self._tables[seq][-1]))

    def step(self, *slices: Slice) -> dict[int, Logits]:
        """Run one step that must not fail; the logits of every sampled slice, by sequence."""
        self._seen.clear()
        result = self.run(*slices)
        assert not result.errors
        sampled = [piece.seq_id for piece in slices if piece.sample is not None]
        return dict(zip(sampled, self._seen, strict=True))

    def run(self, *slices: Slice) -> StepResult:
        self._steps += 1
        copies, self._copies = tuple(self._copies), []
        return self.runner.run(StepPlan(self._steps, slices, copies), lambda layer: None)

    def prefill(self, seq: int, prompt: Sequence[int], *, chunk: int = 512) -> Logits:
        """Prefill alone, in chunks; the logits after the last token."""
        *before, last = [prompt[i : i + chunk] for i in range(0, len(prompt), chunk)]
        for part in before:
            self.step(self.piece(seq, part, sample=False))
        return self.step(self.piece(seq, last, sample=True))[seq]

    def decode(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """One decode step for several sequences together."""
        return self.step(*(self.piece(seq, [t], sample=True) for seq, t in tokens.items()))

    def greedy(self, seq: int, prompt: Sequence[int], n: int, *, chunk: int = 512) -> list[int]:
        found = [int(self.prefill(seq, prompt, chunk=chunk).argmax())]
        while len(found) < n:
            found.append(int(self.decode({seq: found[-1]})[seq].argmax()))
        return found
