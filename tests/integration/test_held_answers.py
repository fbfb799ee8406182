"""Answers held to a grammar, over prefill and decode workers: as if there were one worker, one
answer at a time, and no loss."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tokenizers import Tokenizer

from baton.errors import Draining, RequestError, UnsupportedParameter
from baton.generation import Generation
from gateway.grammar import json_schema
from model.engine.torch_runner import TorchRunner, load_runner
from model.sampling.sampler import sample
from tests.fakes import EOS, byte_tokenizer, write_checkpoint
from tests.workers import Cluster, cluster, generation, prompt, session

PATTERN = '"[a-z]{3,30}"( or "[0-9]+")?!'
HELD = json.dumps({"grammars": [{"lark_grammar": f"start: /{PATTERN}/"}]})
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 8, "maxLength": 12},
        "sizes": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 999},
            "minItems": 3,
            "maxItems": 4,
        },
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}
HELD_TO_SCHEMA = json.dumps({"grammars": [json_schema(SCHEMA)]})


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("toy")))


def asked_of(attempt: int = 0, **over: Any) -> Generation:
    asked: dict[str, Any] = {
        "temperature": 1.0,
        "seed": 3,
        "max_tokens": 60,
        "eos_ids": (EOS,),
        "grammar": HELD,
        "choices": (0, 1, 2),
        **over,
    }
    return generation(prompt(21), attempt=attempt, **asked)


async def test_every_choice_follows_it_wherever_it_is_computed(checkpoint: str) -> None:
    async with cluster(model=checkpoint) as c, session(c.decode[0]) as s:
        found = []
        for attempt, prefill in enumerate([None, c.prefill[0]]):
            asked = asked_of(attempt)
            s.submit(asked, prefill)
            found.append([await s.streams[key].finished() for key in asked.keys])
        assert found[0] == found[1]
        assert len({tuple(tokens) for tokens in found[0]}) == 3
        for tokens in found[0]:
            assert tokens[-1] == EOS
            assert re.fullmatch(PATTERN, byte_tokenizer().decode(tokens))


async def test_a_replay_goes_on_where_it_was_cut(checkpoint: str) -> None:
    async with cluster(model=checkpoint) as c, session(c.decode[0]) as s:
        whole = await s.submit(asked_of(choices=(0,)), c.prefill[0]).finished()
        for cut in range(1, len(whole) - 1):
            prefill = c.prefill[0] if cut % 2 else None
            again = asked_of(cut, choices=(0,), generated=whole[:cut])
            assert whole[:cut] + await s.submit(again, prefill).finished() == whole


@pytest.mark.parametrize(
    ("over", "error", "words"),
    [
        ({"grammar": "{}"}, RequestError, "compiled"),
        ({"generated": (7,)}, RequestError, "generated token 0"),
        ({"eos_ids": ()}, UnsupportedParameter, "end-of-sequence"),
    ],
)
async def test_what_the_gateway_should_have_refused(
    checkpoint: str, over: dict[str, Any], error: type[Exception], words: str
) -> None:
    async with cluster(model=checkpoint) as c, session(c.decode[0]) as s:
        failed = await s.submit(asked_of(choices=(0,), **over), c.prefill[0]).failed()
        assert isinstance(failed, error)
        assert words in failed.message


async def test_a_worker_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    async with cluster(model=str(tmp_path)) as c, session(c.decode[0]) as s:
        failed = await s.submit(asked_of(choices=(0,)), c.prefill[0]).failed()
        assert isinstance(failed, UnsupportedParameter)
        assert "tokenizer.json" in failed.message


# -- exactness, with a real model ----------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_workers(tiny_llama: Path) -> Callable[..., AbstractAsyncContextManager[Cluster]]:
    """Clusters of real deterministic runners with random weights."""

    def make(_: object, num_blocks: int, **__: object) -> TorchRunner:
        return load_runner(
            tiny_llama,
            sampler=sample,
            num_blocks=num_blocks,
            block_size=16,
            threads=1,
            deterministic=True,
        )

    def workers(**more: Any) -> AbstractAsyncContextManager[Cluster]:
        layout = make(None, 1).compatibility
        return cluster(
            layout=layout, make_runner=make, deterministic=True, model=str(tiny_llama), **more
        )

    return workers


async def test_bitwise_as_if_alone_after_a_loss(
    tiny_llama: Path, torch_workers: Callable[..., AbstractAsyncContextManager[Cluster]]
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    asked = asked_of(eos_ids=(257,), grammar=HELD_TO_SCHEMA, max_tokens=200)
    asked = replace(asked, prompt_ids=tuple(i % 256 for i in asked.prompt_ids))
    async with (
        torch_workers(decode=2) as c,
        session(c.decode[0]) as s,
        session(c.decode[1]) as other,
    ):
        wanted = []
        for part in asked.apart:
            salted = replace(part, cache_salt=bytes([part.key.choice_index]))
            wanted.append(await other.submit(salted).finished())
        s.submit(asked, c.prefill[0])
        first = [s.streams[key] for key in asked.keys]
        for stream in first:
            await stream.progress.wait()
        c.decode[0].runtime.engine.drain(Draining("it leaves"))
        for stream, tokens in zip(first, wanted, strict=True):
            assert isinstance(await stream.failed(), Draining)
            again = replace(
                stream.asked,
                key=replace(stream.asked.key, attempt=9),
                generated_ids=tuple(stream.token_ids),
            )
            rest = await other.submit(again, c.prefill[0]).finished()
            assert stream.token_ids + rest == tokens
            jsonschema.validate(json.loads(tokenizer.decode(tokens)), SCHEMA)
