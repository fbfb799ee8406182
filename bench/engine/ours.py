"""``python -m bench.engine.ours SETUP``: Baton's side, one engine step after another.

A step is all that a worker's engine thread does for it: the scheduler's plan, the forward pass,
sampling, the commit and its events. Settings are a decode worker's own defaults. Sequences that
decode got their KV as if from a prefill worker, so contexts need not be computed.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np

from baton import log as logs
from baton.configure import load
from baton.identity import Role
from baton.kv.heap import keep_freed_memory
from baton.sampling import SamplingSpec
from baton.settings import DecodeSettings
from bench.engine.serve import Generator, Setup, serve
from model.engine.engine import Engine
from model.engine.events import Event, SequenceFailed, TokenSampled
from model.engine.runner import Runner
from model.engine.sequence import SequenceRequest
from model.worker.loading import load_model

_SPREAD = 0.5  # of keys and values


class Ours(Generator):
    """An engine that is stepped by hand."""

    def __init__(self, setup: Setup) -> None:
        settings = load(DecodeSettings, _flags(setup), "bench.engine")
        loaded = load_model(settings, lambda done: None)
        keep_freed_memory()
        super().__init__(loaded.vocab_size)
        self._longest = setup.tokens
        self._events: list[Event] = []
        self._engine = Engine(loaded.runner, loaded.limits, self._events.extend)
        self._engine.take_roles([Role.DECODE])
        self._live: list[int] = []
        asyncio.run(_fill(loaded.runner))

    def prefill(self, tokens: int) -> float:
        request = SequenceRequest(prompt_ids=tuple(self.ids(tokens)), spec=_greedy(1))
        began = time.perf_counter()
        self._engine.add(request)
        while not self._step():
            pass
        return time.perf_counter() - began

    def prepare(self, batch: int, context: int) -> None:
        for _ in range(batch):
            prompt, spec = tuple(self.ids(context)), _greedy(self._longest - context)
            request = SequenceRequest(prompt_ids=prompt, spec=spec, receive=True)
            seq_id = self._engine.add(request).seq_id
            self._engine.activate(seq_id, self.ids(1)[0])
            self._live.append(seq_id)

    def decode(self, steps: int) -> list[float]:
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            tokens = self._step()
            times.append(time.perf_counter() - began)
            if tokens != len(self._live):
                raise RuntimeError(f"a step gave {tokens} tokens to {len(self._live)} sequences")
        return times

    def clear(self) -> None:
        for seq_id in self._live:
            self._engine.cancel(seq_id)
        self._live.clear()
        if wrong := self._engine.check_integrity(idle=True):
            raise RuntimeError("; ".join(wrong))

    def _step(self) -> int:
        """Tokens that one step gave. Raises what a sequence failed with."""
        self._events.clear()
        if not self._engine.step():
            raise RuntimeError("the engine had nothing to do")
        for event in self._events:
            if isinstance(event, SequenceFailed):
                raise event.error
        return sum(isinstance(event, TokenSampled) for event in self._events)


def _flags(setup: Setup) -> list[str]:
    size = DecodeSettings.model_fields["block_size"].default
    # Each sequence may end in a block that is not full; and one more, for prompts.
    blocks = -(-setup.pool_tokens // size) + setup.batch + 1
    flags = ["--model", setup.model, "--dtype", "bfloat16", "--threads", str(setup.threads)]
    flags += ["--num-blocks", str(blocks)]
    if setup.batch > DecodeSettings.model_fields["max_running"].default:
        flags += ["--max-running", str(setup.batch)]
    if setup.quantize is not None:
        flags += ["--quantize", setup.quantize]
    return [*flags, "--deterministic"] if setup.deterministic else flags


def _greedy(max_tokens: int) -> SamplingSpec:
    return SamplingSpec(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


async def _fill(runner: Runner) -> None:
    """Random keys and values in every block: those of a pool in use are no zeros."""
    size = runner.compatibility.block_bytes
    values = np.random.default_rng(0).standard_normal(size // 2, dtype=np.float32) * _SPREAD
    block = values.astype(np.float16).tobytes()
    for layer in range(runner.compatibility.layers):
        for index in range(runner.num_blocks):
            await runner.store.write(layer, [index], memoryview(block))


if __name__ == "__main__":
    logs.configure("warning", "console", "bench.engine")
    serve(Ours)
