"""``python -m bench.engine.hardware SETUP``: what the cores of the other sides can do at best.

{"do": "read"}      {way: GB/s}         bytes read from memory, by sums over 512 MiB, far more
                                        than caches hold; a loop of several streams in C was
                                        within 2 % of them
{"do": "matrix"}    {way: GFLOP/s}      bfloat16 products by oneDNN, its weights packed
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from bench.engine.serve import Answer, Command, Setup, serve

_BYTES = 512 * 2**20
#: Rows, inputs and outputs of products: square ones, and some like those of a small model.
_PRODUCTS = ((2048, 2048, 2048), (1024, 4096, 4096), (1024, 576, 3072))
_TIMES = 3


class Hardware:
    """Memory to read, and matrices."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(setup.threads)
        words = torch.ones(_BYTES // 8, dtype=torch.int64)
        self._memory = {"sum of int64": words, "sum of float32": words.view(torch.float32)}
        self._products = {" x ".join(map(str, size)): _product(*size) for size in _PRODUCTS}

    def do(self, command: Command) -> Answer:
        match command:
            case {"do": "read"}:
                sums = self._memory.items()
                return {way: _BYTES / 1e9 / _seconds(memory.sum) for way, memory in sums}
            case {"do": "matrix"}:
                timed = {way: _seconds(multiply) for way, multiply in self._products.items()}
                return {
                    way: 2 * rows * inputs * outputs / 1e9 / seconds
                    for (way, seconds), (rows, inputs, outputs) in zip(
                        timed.items(), _PRODUCTS, strict=True
                    )
                }
        raise ValueError(f"no such command: {command}")


def _product(rows: int, inputs: int, outputs: int) -> Callable[[], Tensor]:
    x = torch.randn(rows, inputs).to(torch.bfloat16)
    weight = torch.randn(outputs, inputs).to(torch.bfloat16)
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return lambda: torch.mm(x, weight.t())
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def multiply() -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        return y

    return multiply


def _seconds(work: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)


if __name__ == "__main__":
    serve(Hardware)
