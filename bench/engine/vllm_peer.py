"""``PYTHON -m bench.engine.vllm_peer SETUP``: vLLM's side, where vLLM lives in its own environment.

vLLM offline, as its users run it: bfloat16, compiled (not ``enforce_eager``), its own token budget,
prefix caching off as nothing is shared. Its engine runs in this process and is stepped by hand, so
that a decode step is timed as such; that is as fast as its engine in processes of its own.
"""

from __future__ import annotations

import time
from itertools import count

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from bench.engine.serve import Generator, Setup, serve


class VllmPeer(Generator):
    """The engine behind a ``vllm.LLM``."""

    def __init__(self, setup: Setup) -> None:
        model = LLM(
            model=setup.model,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=False,
            enable_prefix_caching=False,
            max_model_len=setup.tokens,
            max_num_seqs=setup.batch,
            disable_log_stats=True,
            distributed_executor_backend="uni",
        )
        self._engine = model.llm_engine
        super().__init__(self._engine.model_config.get_vocab_size())
        self._longest = setup.tokens
        self._names = (str(number) for number in count())
        self._live: list[str] = []

    def prefill(self, tokens: int) -> float:
        prompt = self.ids(tokens)
        began = time.perf_counter()
        self._add(prompt, 1)
        while not self._engine.step():
            pass
        return time.perf_counter() - began

    def prepare(self, batch: int, context: int) -> None:
        room = self._longest - context
        self._live = [self._add(self.ids(context), room) for _ in range(batch)]
        while len(self._engine.step()) < batch:
            pass

    def decode(self, steps: int) -> list[float]:
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            outputs = len(self._engine.step())
            times.append(time.perf_counter() - began)
            if outputs != len(self._live):
                raise RuntimeError(f"a step gave {outputs} tokens to {len(self._live)} sequences")
        return times

    def clear(self) -> None:
        self._engine.abort_request(self._live)
        self._live.clear()
        while self._engine.has_unfinished_requests():
            self._engine.step()

    def _add(self, prompt: list[int], max_tokens: int) -> str:
        name = next(self._names)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(name, {"prompt_token_ids": prompt}, params)
        return name


if __name__ == "__main__":
    serve(VllmPeer)
