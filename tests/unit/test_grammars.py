"""Grammars that hold an answer: compiled, followed, and asked by the sampler."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Sequence

import jsonschema
import numpy as np
import pytest

from baton.errors import InternalError, InvalidRequest, UnsupportedParameter
from baton.grammar_limits import GrammarLimits
from baton.grammars import Constraint, Grammars
from baton.sampling import SamplingSpec
from gateway.grammar import exactly, json_schema
from model.engine.mock_runner import Answers
from model.engine.plan import Sample
from model.sampling.allowed import allowed_ids
from model.sampling.sampler import distribution, sample
from tests.fakes import EOS, VOCAB_SIZE, byte_tokenizer, ids
from tests.json_schemas import schema

LIMITS = GrammarLimits(bytes=4096, states=5000, kept=2)
TOKENIZER = byte_tokenizer()


@pytest.fixture
async def grammars() -> AsyncIterator[Grammars]:
    made = Grammars(TOKENIZER.to_str, VOCAB_SIZE, LIMITS)
    yield made
    made.close()


def regex(pattern: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": f"start: /{pattern}/"}]})


def may_come(constraint: Constraint, text: str = "", spec: SamplingSpec | None = None) -> list[str]:
    """What may come after ``text``, as tokens."""
    asked = Sample(spec or SamplingSpec(eos_ids=(EOS,)), (1,), ids(text), constraint=constraint)
    found = allowed_ids(asked, VOCAB_SIZE)
    assert found is not None
    return [TOKENIZER.id_to_token(int(token)) for token in found]


async def test_only_what_the_grammar_has_may_come(grammars: Grammars) -> None:
    constraint = await grammars.begin(regex("ab*c?"), (EOS,))
    assert may_come(constraint) == ["a"]
    assert may_come(constraint, "a") == ["b", "c", "<|eos|>"]
    assert may_come(constraint, "abbc") == ["<|eos|>"]


async def test_forks_go_their_own_ways_and_a_replay_stands_where_they_stood(
    grammars: Grammars,
) -> None:
    stem = await grammars.begin(regex("(ab|cd)+"), (EOS,))
    left, right = stem.fork(), stem.fork()
    assert may_come(left, "a") == ["b"]
    assert may_come(right, "cd") == ["a", "c", "<|eos|>"]
    assert may_come(right.fork(), "cda") == ["b"]
    replayed = await grammars.begin(regex("(ab|cd)+"), (EOS,), ids("cda"))
    assert may_come(replayed, "cda") == ["b"]


async def test_ends_wait_for_min_tokens_where_there_is_another_way(grammars: Grammars) -> None:
    constraint = await grammars.begin(regex("ab?"), (EOS,))
    spec = SamplingSpec(eos_ids=(EOS,), min_tokens=3)
    assert may_come(constraint, "a", spec) == ["b"]
    assert may_come(constraint, "ab", spec) == ["<|eos|>"]


async def test_given_ids_may_come_and_no_others(grammars: Grammars) -> None:
    """Whatever they are: bytes of no character, special tokens, ends in the middle."""
    written = [*ids("a"), 0x80, 0xFF, EOS, EOS, *range(256, VOCAB_SIZE), 0]
    constraint = await grammars.begin(exactly(written), (EOS,))
    spec = SamplingSpec(eos_ids=(EOS,))
    for place, token_id in enumerate(written):
        asked = Sample(spec, (1,), written[:place], constraint=constraint)
        assert allowed_ids(asked, VOCAB_SIZE) == [token_id]


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("{", "compiled"),
        (json.dumps({"grammars": [json_schema({"type": "number", "not": {}})]}), "not"),
        (json.dumps({"grammars": [json_schema({"$ref": "#"})]}), "compiled"),
        (regex("(a"), "unclosed group"),
        (regex("a" * 5000), "5045 bytes, but 4096"),
        (regex("(a|b)*a(a|b){16}"), "generated token 0 .* does not follow"),
    ],
)
async def test_what_cannot_hold_is_refused(grammars: Grammars, grammar: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        await grammars.begin(grammar, (EOS,), ids("x"))
    assert len(refused.value.message) < 600


async def test_without_a_tokenizer_or_an_end_it_is_not_supported(grammars: Grammars) -> None:
    def missing() -> str:
        raise FileNotFoundError("tokenizer.json")

    for source in (missing, lambda: "{}"):
        with pytest.raises(UnsupportedParameter, match="no tokenizer"):
            await Grammars(source, VOCAB_SIZE, LIMITS).begin(regex("a"), (EOS,))
    with pytest.raises(UnsupportedParameter, match="end-of-sequence"):
        await grammars.begin(regex("a"), ())


async def test_kept_grammars_are_not_compiled_again(grammars: Grammars) -> None:
    loads = []

    def source() -> str:
        loads.append(1)
        return TOKENIZER.to_str()

    counted = Grammars(source, VOCAB_SIZE, LIMITS)
    for pattern in ("a", "b", "c", "a"):  # one more than are kept
        assert may_come(await counted.begin(regex(pattern), (EOS,))) == [pattern]
    assert may_come(await counted.begin(regex("a"), (EOS, 257))) == ["a"]
    assert len(loads) == 2, "one for each set of ends"
    counted.close()


def draw(constraint: Constraint, spec: SamplingSpec, seed: int) -> list[int]:
    """An answer of a model whose logits are noise."""
    rng, generated = np.random.default_rng(seed), list[int]()
    while len(generated) < spec.max_tokens and (not generated or generated[-1] != EOS):
        logits = rng.normal(0, 4, VOCAB_SIZE).astype(np.float32)
        generated.append(sample(logits, Sample(spec, (1, 2), generated, constraint=constraint)))
    return generated


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_noise_held_to_random_schemas_is_valid_json(
    grammars: Grammars, temperature: float
) -> None:
    rng = random.Random(7)
    for seed in range(40):
        wanted, most = schema(rng, 600)
        grammar = json.dumps({"grammars": [json_schema(wanted)]})
        constraint = await grammars.begin(grammar, (EOS,))
        spec = SamplingSpec(
            temperature=temperature, top_p=0.9, seed=seed, max_tokens=most + 1, eos_ids=(EOS,)
        )
        drawn = draw(constraint, spec, seed)
        assert drawn[-1] == EOS
        jsonschema.validate(json.loads(TOKENIZER.decode(drawn)), wanted)


async def test_the_draw_is_that_of_the_distribution_without_the_others(grammars: Grammars) -> None:
    """As if the logits of what may not come were -inf, whatever filters there are."""
    logits = np.random.default_rng(3).normal(0, 3, VOCAB_SIZE).astype(np.float32)
    constraint = await grammars.begin(regex("[a-f]x|[b-z]y"), (EOS,))
    allowed = allowed_ids(Sample(SamplingSpec(), (1,), (), constraint=constraint), VOCAB_SIZE)
    assert allowed is not None
    masked = np.full_like(logits, -1e30)
    masked[allowed] = logits[allowed]
    for filters in ({}, {"top_k": 4}, {"top_p": 0.6}, {"min_p": 0.2}, {"presence_penalty": 1.0}):
        spec = SamplingSpec(temperature=0.8, **filters)
        held = distribution(logits, Sample(spec, (1,), (), constraint=constraint))
        free = distribution(masked, Sample(spec, (1,), ()))
        likely = free.weights > 0
        np.testing.assert_array_equal(held.ids, free.ids[likely])
        np.testing.assert_array_equal(held.weights, free.weights[likely])


async def test_the_mock_follows_it_as_well(grammars: Grammars) -> None:
    constraint, generated = await grammars.begin(regex("[ab]{4}"), (EOS,)), list[int]()
    spec = SamplingSpec(eos_ids=(EOS,), temperature=0)
    while not generated or generated[-1] != EOS:
        asked: Sequence[int] = generated
        generated.append(
            Answers().next_id(len(asked), Sample(spec, (1,), asked, constraint=constraint))
        )
    assert len(generated) == 5


async def test_no_token_at_all_is_an_error_of_ours() -> None:
    class Nothing(Constraint):
        def __init__(self) -> None:
            """Of no grammar."""

        def allowed(self, generated_ids: Sequence[int]) -> bytes:
            return bytes(VOCAB_SIZE // 8 + 1)

    with pytest.raises(InternalError, match="no token"):
        may_come(Nothing())
