"""One step on a CUDA device: from slices to tokens, with one wait for the device.

    launch   pack, one copy to the device; replay a graph, or compute layer by layer; sample;
             enqueue what comes back
    result   wait for that; tokens and errors

Nothing between the two asks the device for anything, so a caller that knew the next step before
this one's tokens could pack it in between (with a second buffer). Ours does not: what is planned
depends on the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.errors import BatonError
from model.cache.cuda_store import CudaStore
from model.cache.pool import FP16_LIMIT, KvPool
from model.cuda.buffers import Mirror, StepInputs
from model.cuda.graphs import DecodeGraphs
from model.cuda.net import CudaNet
from model.cuda.packing import Ints, Tables, pack
from model.cuda.paged import PagedAttention
from model.engine.overflow import overflows
from model.engine.plan import Drawn, Slice
from model.engine.runner import BlockStore, LayerListener
from model.nets.config import ModelConfig
from model.nets.transformer import ModelWeights
from model.sampling.device import HostSampler, Pending, Scores, score


@dataclass(frozen=True, slots=True)
class Flight:
    """A step under way."""

    slices: Sequence[Slice]
    peaks: Tensor  #: float32 [layers, at least as many as tokens], on the device
    highest: Tensor  #: float32 [as peaks], over all layers, on its way to the host
    pending: Pending | None  #: None: no slice asks for a token
    ended: torch.cuda.Event | None


def _pending(scores: Scores, asking: Sequence[Slice]) -> Pending | None:
    """What slices ask for; row i of ``scores`` is that of slice i."""
    asked = [(row, sample) for row, piece in enumerate(asking) for _, sample in piece.asked]
    return Pending(scores, asked) if asked else None


class CudaSteps:
    """Computes steps on one device. Not for two threads at once."""

    @torch.inference_mode()
    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        pool: KvPool,
        store: BlockStore,
        attention: PagedAttention,
        sampler: HostSampler,
        *,
        max_positions: int,
        graph_rows: int,
    ) -> None:
        """Capture decode steps of up to ``graph_rows`` sequences; 0 captures none, and the pool
        then needs no spare block. No sequence has more than ``max_positions``."""
        self._pool = pool
        self._store = store
        self._attention = attention
        self._sampler = sampler
        self._device = pool.tensor.device
        self._net = CudaNet(config, weights, pool, attention, max_positions)
        self._tables = Tables(pool.block_size)
        self._mirror = Mirror(0, self._device)
        self._graphs: DecodeGraphs | None = None
        with self._on_device():
            if graph_rows:
                self._graphs = DecodeGraphs(
                    self._net,
                    attention,
                    pool,
                    config,
                    dtype=weights.norm.dtype,
                    most_blocks=-(-max_positions // pool.block_size),
                    most=graph_rows,
                )

    def run(self, slices: Sequence[Slice], on_layer: LayerListener) -> Drawn:
        """Slices have been found to fit model and pool."""
        with self._on_device():
            return self._result(self._launch(slices, on_layer))

    def _launch(self, slices: Sequence[Slice], on_layer: LayerListener) -> Flight:
        """Enqueue a step; waits for nothing."""
        tables = self._tables.of(slices)
        asking = [piece for piece in slices if piece.asked]
        if isinstance(self._store, CudaStore):
            self._store.begin_step(self._exported(slices))
        if self._graphs is not None and self._graphs.holds(slices):
            results = self._graphs.launch(slices, tables)
            peaks = results.peaks
            pending = _pending(results.scores, slices)
            for layer in range(peaks.shape[0]):  # nothing of it is handed over
                on_layer(layer)
        else:
            step = self._upload(slices, tables)
            self._attention.prepare(step)
            hidden = self._net.forward(step, lambda layer: self._written(layer, on_layer))
            peaks, pending = hidden.peaks, None
            if asking:
                logits = self._net.logits(hidden, step.device.picked[: len(asking)])
                pending = _pending(score(logits), asking)
        highest = peaks.amax(0).to("cpu", non_blocking=True)
        ended = None
        if self._device.type == "cuda":
            ended = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ended.record(torch.cuda.current_stream(self._device))
        return Flight(slices, peaks, highest, pending, ended)

    def _result(self, flight: Flight) -> Drawn:
        if flight.ended is not None:
            flight.ended.synchronize()
        slices = flight.slices
        count = sum(len(piece.token_ids) for piece in slices)
        drawn = Drawn()
        if not bool((flight.highest[:count] < FP16_LIMIT).all()):
            drawn = Drawn(errors=overflows(slices, flight.peaks[:, :count].cpu().numpy()))
        found = flight.pending.tokens(self._sampler) if flight.pending is not None else []
        told = flight.pending.logprobs(found) if flight.pending is not None else {}
        asked = ((piece.seq_id, seq_id) for piece in slices for seq_id, _ in piece.asked)
        failed = set(drawn.errors)
        for place, ((stem, seq_id), token) in enumerate(zip(asked, found, strict=True)):
            if stem in failed:
                continue
            if isinstance(token, BatonError):
                drawn.errors[seq_id] = token
                continue
            drawn.tokens[seq_id] = token
            if place in told:
                drawn.logprobs[seq_id] = told[place]
        return drawn

    def _upload(self, slices: Sequence[Slice], tables: Sequence[Ints]) -> StepInputs:
        packed = pack(slices, tables, self._pool.block_size)
        if packed.layout.size > self._mirror.capacity:
            self._mirror = Mirror(2 * packed.layout.size, self._device)
        return self._mirror.upload(packed)

    def _written(self, layer: int, on_layer: LayerListener) -> None:
        if isinstance(self._store, CudaStore):
            self._store.mark_written(layer)
        on_layer(layer)

    def _exported(self, slices: Sequence[Slice]) -> set[int]:
        """The blocks written for sequences whose KV is handed over while it is computed."""
        size = self._pool.block_size
        tables = (s.block_table[s.start // size : -(-s.end // size)] for s in slices if s.export)
        return {block for table in tables for block in table}

    def _on_device(self) -> torch.cuda.device | nullcontext[None]:
        """Triton launches on the thread's current device, wherever its arguments are."""
        if self._device.type == "cuda":
            return torch.cuda.device(self._device)
        return nullcontext()
