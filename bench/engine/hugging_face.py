"""``python -m bench.engine.hugging_face SETUP``: transformers' ``generate``, as it is.

bfloat16 weights, attention "sdpa", no compilation. A decode step is the time between two tokens
inside one ``generate``, so what it does before its first token is left out; it goes on from a cache
that holds each sequence's context.
"""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from bench.engine.serve import Generator, Setup, serve


class _Clock(StoppingCriteria):
    """Asked after each token whether to stop: writes down when."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        self.ticks.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class HuggingFace(Generator):
    """A model of ``AutoModelForCausalLM``."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(setup.threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._model = AutoModelForCausalLM.from_pretrained(
            setup.model, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self._config = self._model.config
        super().__init__(self._config.vocab_size)
        self._cache: DynamicCache | None = None
        self._known = torch.empty(0, 0, dtype=torch.int64)  # [batch, cached + 1]

    def prefill(self, tokens: int) -> float:
        prompt = torch.tensor([self.ids(tokens)])
        began = time.perf_counter()
        self._generate(prompt, None, 1)
        return time.perf_counter() - began

    def prepare(self, batch: int, context: int) -> None:
        config = self._config
        head_dim = config.hidden_size // config.num_attention_heads
        shape = (batch, config.num_key_value_heads, context, head_dim)
        self._cache = DynamicCache(config=config)
        for layer in range(config.num_hidden_layers):
            keys, values = (torch.randn(shape).to(torch.bfloat16) for _ in range(2))
            self._cache.update(keys, values, layer)
        self._known = torch.tensor([self.ids(context + 1) for _ in range(batch)])

    def decode(self, steps: int) -> list[float]:
        self._known, ticks = self._generate(self._known, self._cache, steps + 1)
        return [after - before for before, after in pairwise(ticks)]

    def clear(self) -> None:
        self._cache = None

    @torch.inference_mode()
    def _generate(
        self, ids: Tensor, cache: DynamicCache | None, count: int
    ) -> tuple[Tensor, list[float]]:
        """``ids`` [batch, n] and ``count`` tokens after them; when each of those came."""
        clock = _Clock()
        longer: Tensor = self._model.generate(  # type: ignore[assignment, misc]
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return longer, clock.ticks


if __name__ == "__main__":
    serve(HuggingFace)
