"""Decode steps as CUDA graphs, one for each batch size: launched at once, not kernel by kernel.

A graph reads and writes where it was captured, so all of them share one buffer of inputs and one
of results. Rows that only fill up a batch are sequences of one token in the pool's spare block,
which belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from model.cache.pool import KvPool
from model.cuda.buckets import bucket_of, bucket_sizes
from model.cuda.buffers import Mirror, StepInputs
from model.cuda.net import CudaNet
from model.cuda.packing import Ints, Layout, pack
from model.cuda.paged import PagedAttention
from model.engine.plan import Slice
from model.nets.config import ModelConfig
from model.sampling.device import Scores, score

log = structlog.get_logger(__name__)

_WARM_UP = 2  # runs before a capture: kernels are compiled and loaded, libraries take workspace


@dataclass(frozen=True, slots=True)
class Results:
    """Of one decode step; whole buffers, of which a step fills the first rows."""

    scores: Scores
    peaks: Tensor  #: float32 [layers, rows]

    def fill(self, scores: Scores, peaks: Tensor) -> None:
        rows = peaks.shape[1]
        self.scores.logits[:rows].copy_(scores.logits)
        self.scores.best[:rows].copy_(scores.best)
        self.scores.low[:rows].copy_(scores.low)
        self.scores.high[:rows].copy_(scores.high)
        self.peaks[:, :rows].copy_(peaks)


class DecodeGraphs:
    """Captured when built, which takes seconds. Not for two threads at once."""

    def __init__(
        self,
        net: CudaNet,
        attention: PagedAttention,
        pool: KvPool,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        most_blocks: int,
        most: int,
    ) -> None:
        """Capture steps of up to ``most`` sequences of up to ``most_blocks`` blocks each, for a
        model in ``dtype``. The pool must have a spare block."""
        self._net = net
        self._attention = attention
        self._block_size = pool.block_size
        self._scratch = pool.num_blocks
        self._sizes = bucket_sizes(most)
        device = pool.tensor.device
        capacity = Layout(most, most, most * most_blocks).size
        self._mirror = Mirror(capacity, device)
        self._results = Results(
            Scores(
                torch.empty(most, config.vocab_size, dtype=dtype, device=device),
                torch.empty(most, dtype=torch.int64, device=device),
                torch.empty(most, dtype=dtype, device=device),
                torch.empty(most, dtype=dtype, device=device),
            ),
            torch.empty(config.layers, most, device=device),
        )
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":  # elsewhere the same buffers are used the same way: for tests
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._memory = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, Callable[[], None]] = {}
        # The largest first: what smaller ones need of memory is then there.
        for rows in reversed(self._sizes):
            self._graphs[rows] = self._capture(self._upload((), (), rows), device)
        log.info("decode steps captured", sizes=self._sizes)

    def holds(self, slices: Sequence[Slice]) -> bool:
        """Whether a step of these is captured: one token each, none handed over layer by layer."""
        return len(slices) <= self._sizes[-1] and all(
            len(piece.token_ids) == 1 and not piece.export for piece in slices
        )

    def launch(self, slices: Sequence[Slice], tables: Sequence[Ints]) -> Results:
        """Enqueue a step, to be read before the next one. Row i is slice i."""
        rows = bucket_of(len(slices), self._sizes)
        assert rows is not None, "see holds"
        self._attention.prepare(self._upload(slices, tables, rows))
        self._graphs[rows]()
        return self._results

    def _upload(self, slices: Sequence[Slice], tables: Sequence[Ints], rows: int) -> StepInputs:
        packed = pack(slices, tables, self._block_size, rows=rows, scratch=self._scratch)
        return self._mirror.upload(packed, rows)

    def _capture(self, step: StepInputs, device: torch.device) -> Callable[[], None]:
        """What replays the computation of a step that is in the buffers."""

        def compute() -> None:
            hidden = self._net.forward(step, lambda layer: None)
            self._results.fill(score(self._net.logits(hidden)), hidden.peaks)

        self._attention.prepare(step)
        if self._stream is None:
            return compute
        # Where it is captured it is warmed up: libraries keep workspace for each stream.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                compute()
        graph = torch.cuda.CUDAGraph()
        # Only what this thread does can spoil a capture: other threads may copy meanwhile.
        with torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"):
            compute()
        torch.cuda.current_stream(device).wait_stream(self._stream)
        return graph.replay
