"""``python -m bench.gpu``: how fast a GPU computes a model, beside its limits and transformers.

    decode     milliseconds of a step of a batch, greedy, and the bytes of weights and KV that it
               must read per second, over what the device reads (sums over 2 GiB)
    prefill    tokens/s of one prompt, and its bfloat16 arithmetic per second, over the rate of
               square products of 8,192

Random weights, made on the device; the KV of a context is whatever is in the pool. Times are of
whole steps as the engine sees them, from the plan to tokens on the host. One process: nothing else
may run on the device.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import get_args

import torch
from rich.console import Console

from baton import log as logs
from baton.sampling import SamplingSpec
from baton.settings import AttentionChoice, Quantize
from bench import records
from bench.arguments import whole_numbers
from bench.records import Record
from model.engine.plan import Sample, Slice, StepPlan
from model.engine.torch_runner import TorchRunner
from model.nets.config import Llama3Scaling, ModelConfig, RopeConfig
from model.nets.linear import Plain
from model.nets.transformer import LayerWeights, ModelWeights
from model.sampling.sampler import sample
from model.weights.linears import LinearMaker, forms

_BLOCK = 16  # tokens
_WARM_UP = 3
_SPREAD = 0.02  # of weights: nothing comes near the end of FP16
_GREEDY = SamplingSpec(temperature=0.0)

LLAMA_8B = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    max_positions=131_072,
    norm_eps=1e-5,
    rope=RopeConfig(500_000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
    windows=(None,) * 32,
)
LLAMA_1B = replace(
    LLAMA_8B,
    hidden_size=2048,
    intermediate_size=8192,
    layers=16,
    head_dim=64,
    windows=(None,) * 16,
    rope=RopeConfig(500_000.0, Llama3Scaling(32.0, 1.0, 4.0, 8192)),
    tied=True,
)
#: For tests of this program.
TINY = replace(
    LLAMA_1B,
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=32,
    windows=(None,) * 2,
)
MODELS = {"llama-3.2-1b": LLAMA_1B, "llama-3.1-8b": LLAMA_8B, "tiny": TINY}


def random_weights(
    config: ModelConfig, device: torch.device, quantize: Quantize | None
) -> ModelWeights:
    """A model's bfloat16 weights, made where they stay."""
    make = LinearMaker(forms(quantize, device), deterministic=False)
    random = torch.Generator(device).manual_seed(1)

    def matrix(outputs: int, inputs: int) -> torch.Tensor:
        empty = torch.empty(outputs, inputs, dtype=torch.bfloat16, device=device)
        return empty.normal_(0, _SPREAD, generator=random)

    def ones() -> torch.Tensor:
        return torch.ones(config.hidden_size, dtype=torch.bfloat16, device=device)

    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    layers = tuple(
        LayerWeights(
            attention_norm=ones(),
            qkv=make(matrix(queries + 2 * keys, hidden), None, keep=True),
            qk_norm=None,
            out=make(matrix(hidden, queries), None, keep=True),
            mlp_norm=ones(),
            gate_up=make(matrix(2 * inner, hidden), None, keep=True),
            down=make(matrix(hidden, inner), None, keep=True),
        )
        for _ in range(config.layers)
    )
    embedding = matrix(config.vocab_size, hidden)
    head = embedding if config.tied else matrix(config.vocab_size, hidden)
    return ModelWeights(Plain(embedding, None).rows, layers, ones(), make(head, None, keep=True))


class Ours:
    """Baton's runner, a step at a time."""

    def __init__(self, config: ModelConfig, asked: argparse.Namespace) -> None:
        weights = random_weights(config, torch.device(asked.device), asked.quantize)
        self._config = config
        longest = max(*asked.tokens, *asked.context) + asked.steps + _WARM_UP + 1
        blocks = -(-longest // _BLOCK)
        firsts = range(0, blocks * max(asked.batch), blocks)
        self._tables = [list(range(first, first + blocks)) for first in firsts]
        self._runner = TorchRunner(
            config,
            weights,
            revision="random",
            num_blocks=blocks * max(asked.batch),
            block_size=_BLOCK,
            sampler=sample,
            attention=asked.attention,
            graph_rows=max(asked.batch) if asked.graphs else 0,
        )
        self.name = self._runner.chosen.name
        self.weight_bytes = sum(linear.nbytes for linear in weights.linears())

    def prefill(self, tokens: int) -> float:
        """Seconds of one prompt in one step."""
        return self._seconds([self._slice(0, tokens, 0)])

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds of a step, the median of so many."""
        times = []
        for step in range(_WARM_UP + steps):
            slices = [self._slice(seq, 1, context + step) for seq in range(batch)]
            times.append(self._seconds(slices))
        return median(times[_WARM_UP:])

    def _slice(self, seq: int, count: int, start: int) -> Slice:
        ids = [(7 * i + seq) % self._config.vocab_size for i in range(count)]
        return Slice(seq, ids, start, self._tables[seq], Sample(_GREEDY, (), ()))

    def _seconds(self, slices: Sequence[Slice]) -> float:
        plan = StepPlan(1, tuple(slices))
        began = time.perf_counter()
        result = self._runner.run(plan, lambda layer: None)
        seconds = time.perf_counter() - began
        if result.errors:
            raise next(iter(result.errors.values()))
        return seconds

    def close(self) -> None:
        self._runner.close()


class HuggingFace:
    """transformers' own forward pass with its own cache, as its ``generate`` calls it."""

    name = "sdpa"

    def __init__(self, config: ModelConfig, asked: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM, LlamaConfig

        self._device = torch.device(asked.device)
        with self._device:
            self._model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                LlamaConfig(
                    vocab_size=config.vocab_size,
                    hidden_size=config.hidden_size,
                    intermediate_size=config.intermediate_size,
                    num_hidden_layers=config.layers,
                    num_attention_heads=config.heads,
                    num_key_value_heads=config.kv_heads,
                    head_dim=config.head_dim,
                    max_position_embeddings=config.max_positions,
                    tie_word_embeddings=config.tied,
                ),
                dtype=torch.bfloat16,
                attn_implementation="sdpa",
            )
        count = sum(parameter.numel() for parameter in self._model.parameters())
        # Of an embedding of its own single rows are read.
        looked_up = 0 if config.tied else config.vocab_size * config.hidden_size
        self.weight_bytes = 2 * (count - looked_up)

    @torch.inference_mode()
    def prefill(self, tokens: int) -> float:
        ids = torch.ones(1, tokens, dtype=torch.int64, device=self._device)
        began = time.perf_counter()
        self._model(ids, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()
        return time.perf_counter() - began

    @torch.inference_mode()
    def decode(self, batch: int, context: int, steps: int) -> float:
        ids = torch.ones(batch, context, dtype=torch.int64, device=self._device)
        out = self._model(ids, use_cache=True, logits_to_keep=1)
        times = []
        for _ in range(_WARM_UP + steps):
            began = time.perf_counter()
            ids = out.logits[:, -1:].argmax(-1)
            out = self._model(ids, past_key_values=out.past_key_values, use_cache=True)
            out.logits[:, -1].argmax(-1).tolist()
            times.append(time.perf_counter() - began)
        return median(times[_WARM_UP:])

    def close(self) -> None:
        del self._model


SIDES: dict[str, Callable[[ModelConfig, argparse.Namespace], Ours | HuggingFace]] = {
    "baton": Ours,
    "transformers": HuggingFace,
}


def limits(device: torch.device) -> tuple[float, float]:
    """Bytes read and bfloat16 operations per second."""
    large = device.type == "cuda"
    memory = torch.ones((2**31 if large else 2**26) // 4, device=device)
    size = 8192 if large else 512
    square = torch.randn(size, size, device=device).to(torch.bfloat16)
    read = _timed(lambda: memory.sum(), device)
    product = _timed(lambda: square @ square, device)
    return memory.nbytes / read, 2 * size**3 / product


def _timed(work: Callable[[], torch.Tensor], device: torch.device, times: int = 10) -> float:
    """Seconds, the median of single runs."""
    found = []
    for _ in range(_WARM_UP + times):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return median(found[_WARM_UP:])


def measure(asked: argparse.Namespace) -> Iterator[Record]:
    """Every number, as soon as it is known."""
    config, device = MODELS[asked.model], torch.device(asked.device)
    bandwidth, rate = limits(device)
    yield Record("memory", bandwidth / 1e9, "GB/s", {"side": "hardware"})
    yield Record("products", rate / 1e12, "TFLOP/s", {"side": "hardware"})
    for name in asked.sides:
        side = SIDES[name](config, asked)
        named = {"side": name, "attention": side.name}
        for batch in asked.batch:
            for context in asked.context:
                seconds = side.decode(batch, context, asked.steps)
                kv = batch * context * config.layers * config.kv_bytes_per_token
                case = {**named, "phase": "decode", "batch": batch, "tokens": context}
                yield Record("step", seconds * 1e3, "ms", case)
                yield Record("tokens/s", batch / seconds, "ratio", case)
                share = (side.weight_bytes + kv) / seconds / bandwidth
                yield Record("of the limit", share, "ratio", case)
        for tokens in asked.tokens:
            seconds = median(side.prefill(tokens) for _ in range(_WARM_UP + asked.steps))
            case = {**named, "phase": "prefill", "batch": 1, "tokens": tokens}
            yield Record("step", seconds * 1e3, "ms", case)
            yield Record("tokens/s", tokens / seconds, "ratio", case)
            yield Record(
                "of the limit", _operations(config, tokens) / seconds / rate, "ratio", case
            )
        side.close()
        del side
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _operations(config: ModelConfig, tokens: int) -> float:
    """Of matrix products and causal attention; logits are of the last token alone."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    weights = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    attention = 2 * tokens * queries  # half of q k and of weights v each
    return config.layers * tokens * (2 * weights + attention)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--model", choices=[*MODELS], default=next(iter(MODELS)))
    parser.add_argument("--sides", default=[*SIDES], type=lambda text: text.split(","))
    parser.add_argument("--attention", choices=get_args(AttentionChoice), default="auto")
    parser.add_argument("--quantize", choices=get_args(Quantize))
    parser.add_argument("--no-graphs", dest="graphs", action="store_false")
    parser.add_argument("--batch", type=whole_numbers, default=[1, 8, 32, 64])
    parser.add_argument("--context", type=whole_numbers, default=[128, 2048])
    parser.add_argument("--tokens", type=whole_numbers, default=[128, 1024, 4096])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    if unknown := {*asked.sides} - SIDES.keys():
        parser.error(f"--sides: {', '.join(sorted(unknown))}: none of {', '.join(SIDES)}")
    if min(*asked.batch, *asked.context, *asked.tokens, asked.steps) < 1:
        parser.error("every number is at least 1")
    return asked


def main(argv: Sequence[str]) -> int:
    asked = _parse(argv)
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"bench.gpu: torch {torch.__version__} finds no GPU here", file=sys.stderr)
        return 1
    found = list(measure(asked))
    Console(width=140).print(records.table(asked.model, found))
    if asked.json is not None:
        records.write(asked.json, found)
    return 0


if __name__ == "__main__":
    logs.configure("warning", "console", "bench")
    sys.exit(main(sys.argv[1:]))
