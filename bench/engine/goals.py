"""What the engine is to show."""

from __future__ import annotations

from bench.goals import Goal

_1K, _ONE = {"tokens": 1024}, {"batch": 1}

#: First beside others, then alone, then what lies beyond.
GOALS = (
    Goal(
        "decode, tokens/s over transformers'", "decode / transformers", 1.5, "bf16", at_least=True
    ),
    Goal("decode, tokens/s over vLLM's", "decode / vllm", 1.0, "bf16", at_least=True),
    Goal("decode, tokens/s over vLLM's bf16", "decode / vllm", 1.5, "int8", at_least=True),
    Goal(
        "prefill, tokens/s over generate's",
        *("prefill / transformers", 1.3, "bf16"),
        at_least=True,
        where=_1K,
    ),
    Goal(
        "prefill, tokens/s over vLLM's",
        *("prefill / vllm", 1.0, "bf16"),
        at_least=True,
        where=_1K,
    ),
    Goal("seconds from start to ready", "ready", 10.0, "bf16"),
    Goal("peak memory over weights and KV pool", "peak / held", 1.3, "bf16"),
    Goal(
        "beyond: decode, of the memory's read bandwidth",
        *("decode of bandwidth", 0.75, "bf16"),
        at_least=True,
        where=_ONE,
    ),
    Goal(
        "beyond: prefill, of the rate of bf16 products",
        *("prefill of matrix rate", 0.7, "bf16"),
        at_least=True,
        where=_1K,
    ),
)
