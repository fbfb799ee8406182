"""A runner without a model: a cost model for time, and a real small KV pool for truth.

Its "KV" makes mistakes visible. The row of position p in a layer is a hash of the row at p - 1,
*read from the pool*, and of the token at p; and the next token is a function of a checksum over
every row of every layer, again read from the pool. So a block that is wrong, missing, stale or
in the wrong place changes the output, while batching, chunking, prefix hits, hand-off and
replay must not: ``expected_tokens`` says, from the request alone, what has to come out.

It generates printable ids and, when told to, an end-of-sequence id after so many tokens.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baton.generation import TokenLogprobs
from baton.identity import CompatibilityClass
from baton.kv.transport import Region
from baton.sampling import SamplingSpec
from model.engine.plan import Sample, Slice, StepPlan, StepResult
from model.engine.runner import LayerListener

Bytes = npt.NDArray[np.uint8]

_POSITION = 0x9E3779B97F4A7C15  # odd multipliers, so that no row can trade places with another
_LAYER = 0xC2B2AE3D27D4EB4F
_WORD = 0x165667B19E3779F9
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class CostModel:
    """How long a step takes, in seconds. The default is free."""

    step_s: float = 0.0
    prefill_token_s: float = 0.0  #: per token of a prefill chunk
    prefill_pair_s: float = 0.0  #: per token of a chunk and token before it: attention
    decode_s: float = 0.0  #: per sequence that takes a decode step
    context_token_s: float = 0.0  #: per token that such a sequence reads back

    @classmethod
    def read(cls, path: Path) -> CostModel:
        """From a file that ``python -m bench.fit`` wrote, which has all of these, and others for
        the simulator. Raises OSError, and ValueError naming what is missing or no time."""
        said = json.loads(path.read_text(encoding="utf-8"))
        names = [field.name for field in fields(cls)]
        if not isinstance(said, dict) or (missing := [n for n in names if n not in said]):
            lacks = ", ".join(missing) if isinstance(said, dict) else "everything"
            raise ValueError(f"{path} is no file of costs: it lacks {lacks}")
        for name in names:
            value = said[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{path}: {name} is {value!r}, but must be seconds, at least 0")
        return cls(**{name: said[name] for name in names})

    def seconds(self, plan: StepPlan) -> float:
        decodes = [part for part in plan.slices if part.decodes]
        chunks = [part for part in plan.slices if not part.decodes]
        return (
            self.step_s
            + self.prefill_token_s * sum(len(part.token_ids) for part in chunks)
            + self.prefill_pair_s * sum(_pairs(part.start, part.end) for part in chunks)
            + self.decode_s * len(decodes)
            + self.context_token_s * sum(part.end for part in decodes)
        )


def _pairs(start: int, end: int) -> int:
    """Of each position from ``start`` on and those before it."""
    return (end * (end - 1) - start * (start - 1)) // 2


@dataclass(frozen=True, slots=True)
class Answers:
    """Which ids come out: ``low_id .. high_id - 1`` (by default printable ASCII), and, unless
    ``length`` is None, the first of the request's eos ids after ``length`` others (later, where
    min_tokens or ignore_eos say so)."""

    low_id: int = 32
    high_id: int = 127
    length: int | None = None

    def next_id(self, checksum: int, sample: Sample) -> int:
        """The next token: of (checksum of all KV) when greedy, else also of the seed, the
        position and the choice. Pure. Where a grammar holds the answer, one that it allows."""
        spec, generated = sample.spec, len(sample.generated_ids)
        ends = self.length is not None and generated >= max(self.length, spec.min_tokens)
        if ends and sample.constraint is None and spec.eos_ids and not spec.ignore_eos:
            return spec.eos_ids[0]
        position = len(sample.prompt_ids) + generated
        draw = (0, 0, 0) if spec.greedy else (spec.seed, position, sample.choice_index + 1)
        digest = blake2b(struct.pack("<4Q", checksum, *draw), digest_size=8).digest()
        number = int.from_bytes(digest, "little")
        if (constraint := sample.constraint) is not None:
            mask = np.frombuffer(constraint.allowed(sample.generated_ids), dtype=np.uint8)
            allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
            return int(allowed[number % len(allowed)])
        return self.low_id + number % (self.high_id - self.low_id)

    def logprobs(self, token_id: int, count: int) -> TokenLogprobs:
        """Made up from the id alone, exact as float32: the lowest are the most likely. Pure."""
        top = range(self.low_id, self.high_id)[:count]
        return TokenLogprobs(-token_id / 64, tuple((i, -i / 64) for i in top))


class MockStore:
    """The pool as bytes: uint8 [layers, num_blocks, block_bytes]. Implements BlockStore."""

    def __init__(self, compatibility: CompatibilityClass, num_blocks: int) -> None:
        shape = (compatibility.layers, num_blocks, compatibility.block_bytes)
        self.pool: Bytes = np.zeros(shape, dtype=np.uint8)

    @property
    def block_bytes(self) -> int:
        return int(self.pool.shape[2])

    @property
    def region(self) -> Region:
        return Region(self.pool.ctypes.data, *self.pool.shape)

    def once_written(self, layer: int, tell: Callable[[], None]) -> None:
        tell()

    async def read(self, layer: int, blocks: Sequence[int]) -> Sequence[memoryview]:
        """Views into the pool, no copy: valid while the caller holds the blocks."""
        return [memoryview(self.pool[layer, block]) for block in blocks]

    async def read_into(self, layer: int, blocks: Sequence[int], target: memoryview) -> None:
        """Copy the blocks to ``target``. Raises ValueError when its length is not theirs."""
        rows = np.frombuffer(target, dtype=np.uint8).reshape(len(blocks), self.block_bytes)
        np.take(self.pool[layer], list(blocks), axis=0, out=rows)

    async def write(self, layer: int, blocks: Sequence[int], data: memoryview) -> None:
        """Copy ``data`` into the blocks. Raises ValueError when its length is not theirs."""
        expected = len(blocks) * self.block_bytes
        if data.nbytes != expected:
            raise ValueError(f"{data.nbytes} bytes for {len(blocks)} blocks of {expected} in all")
        source = np.frombuffer(data, dtype=np.uint8).reshape(len(blocks), self.block_bytes)
        self.pool[layer, list(blocks)] = source

    def pin(self, memory: memoryview) -> AbstractContextManager[None]:
        """No device copies to or from it."""
        return nullcontext()


class MockRunner:
    """Executes plans on the mock pool, in the time that ``cost`` says.

    ``sleep`` is called once per layer with what is left of its share of the step's seconds, by
    ``clock``: what the mock itself computes is part of the step. Raises ValueError when a
    position's K and V are not a multiple of 8 bytes, the width of the checksum.
    """

    def __init__(
        self,
        compatibility: CompatibilityClass,
        num_blocks: int,
        *,
        cost: CostModel | None = None,
        answers: Answers | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if compatibility.kv_heads * compatibility.head_size % 2:
            raise ValueError("the mock needs an even number of K values per position")
        self._compatibility = compatibility
        self._num_blocks = num_blocks
        self._cost = cost or CostModel()
        self._answers = answers or Answers()
        self._sleep = sleep
        self._clock = clock
        self._store = MockStore(compatibility, num_blocks)

    @property
    def compatibility(self) -> CompatibilityClass:
        return self._compatibility

    @property
    def numerics_id(self) -> str:
        return "mock"

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def store(self) -> MockStore:
        return self._store

    def close(self) -> None:
        """Nothing to close."""

    def run(self, plan: StepPlan, on_layer: LayerListener) -> StepResult:
        """See Runner.run. Deterministic whatever the batch."""
        seconds, began = self._cost.seconds(plan), self._clock()
        for copy in plan.copies:
            self._store.pool[:, copy.target] = self._store.pool[:, copy.source]
        layers = self._compatibility.layers
        tokens: dict[int, int] = {}
        for layer in range(layers):
            for part in plan.slices:
                self._write_rows(layer, part)
            if layer == layers - 1:
                tokens = self._draw(plan)
            if seconds > 0:
                due = began + seconds * (layer + 1) / layers
                self._sleep(max(0.0, due - self._clock()))
            on_layer(layer)
        logprobs = {
            seq_id: self._answers.logprobs(tokens[seq_id], sample.spec.logprobs)
            for part in plan.slices
            for seq_id, sample in part.asked
            if sample.spec.logprobs is not None
        }
        return StepResult(plan.step, tokens, compute_s=seconds, logprobs=logprobs)

    def _draw(self, plan: StepPlan) -> dict[int, int]:
        """The tokens of all that ask for one, by seq_id; their rows are written."""
        return {
            seq_id: self._answers.next_id(checksum, sample)
            for part in plan.slices
            if part.asked
            for checksum in (self._checksum(part),)
            for seq_id, sample in part.asked
        }

    def _rows(self, layer: int) -> Bytes:
        """A view of one layer, [num_blocks, 2 (K and V), block_size, row bytes / 2]."""
        shape = (self._num_blocks, 2, self._compatibility.block_size, -1)
        rows: Bytes = self._store.pool[layer].reshape(shape)
        return rows

    def _write_rows(self, layer: int, part: Slice) -> None:
        """Chain the slice's rows on from the row before it, and write them."""
        rows, size = self._rows(layer), self._compatibility.block_size
        row = b""
        if part.start:
            before = part.start - 1
            row = rows[part.block_table[before // size], :, before % size].tobytes()
        width = 2 * rows.shape[3]
        for position, token in enumerate(part.token_ids, start=part.start):
            row = _next_row(layer, row, token, width)
            place = rows[part.block_table[position // size], :, position % size]
            place[:] = np.frombuffer(row, dtype=np.uint8).reshape(place.shape)

    def _checksum(self, part: Slice) -> int:
        """Over the rows 0 .. end - 1 of every layer, as ``_row_sum`` adds them up."""
        size = self._compatibility.block_size
        positions = np.arange(1, part.end + 1, dtype=np.uint64) * np.uint64(_POSITION)
        total = 0
        for layer in range(self._compatibility.layers):
            rows = self._rows(layer)[list(part.block_table[: -(-part.end // size)])]
            flat = rows.transpose(0, 2, 1, 3).reshape(-1, 2 * rows.shape[3])[: part.end]
            words = np.ascontiguousarray(flat).view(np.uint64)
            weights = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(_WORD)
            sums = (words * (weights | np.uint64(1))).sum(axis=1, dtype=np.uint64)
            layer_sum = int((sums * (positions | np.uint64(1))).sum(dtype=np.uint64))
            total += layer_sum * ((layer + 1) * _LAYER | 1)
        return total & _MASK


def expected_tokens(
    prompt_ids: Sequence[int],
    spec: SamplingSpec,
    compatibility: CompatibilityClass,
    answers: Answers | None = None,
    choice_index: int = 0,
) -> list[int]:
    """Every id that a request must generate, to its end, whatever happens on the way.

    Follows the arithmetic of MockRunner without pool, blocks or batches. O(tokens x layers).
    """
    answers = answers or Answers()
    width = compatibility.block_bytes // compatibility.block_size
    rows = [b""] * compatibility.layers
    checksum, generated, position = 0, list[int](), 0
    pending = list(prompt_ids)
    while True:
        for token in pending:
            position += 1
            for layer, row in enumerate(rows):
                rows[layer] = _next_row(layer, row, token, width)
                checksum += _row_sum(layer, position, rows[layer])
        sample = Sample(spec, prompt_ids, generated, choice_index)
        token = answers.next_id(checksum & _MASK, sample)
        generated.append(token)
        ended = token in spec.eos_ids and not spec.ignore_eos
        if ended or len(generated) >= spec.max_tokens:
            return generated
        pending = [token]


def _next_row(layer: int, before: bytes, token: int, width: int) -> bytes:
    """K and V of one position in one layer, ``width`` bytes: a digest, repeated to fill it."""
    digest = blake2b(struct.pack("<2Q", layer, token) + before, digest_size=16).digest()
    return (digest * -(-width // len(digest)))[:width]


def _row_sum(layer: int, count: int, row: bytes) -> int:
    """What row number ``count`` (from 1) of a layer adds to the checksum, modulo 2^64."""
    words: tuple[int, ...] = struct.unpack(f"={len(row) // 8}Q", row)
    in_row = sum(word * (i * _WORD | 1) for i, word in enumerate(words, start=1))
    return in_row * (count * _POSITION & _MASK | 1) * ((layer + 1) * _LAYER | 1)
