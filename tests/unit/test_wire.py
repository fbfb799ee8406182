"""What one process says, the other hears: every value survives its message."""

from __future__ import annotations

import math
from dataclasses import replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton import wire
from baton.deadlines import UNLIMITED, Deadlines
from baton.errors import (
    TABLE,
    IncompatiblePeer,
    InvalidRequest,
    UnsupportedParameter,
    from_code,
)
from baton.generation import AttemptKey, FinishReason, Generation, Timings, TokenLogprobs
from baton.identity import PROTOCOL, CompatibilityClass, Identity, require_pair
from baton.sampling import MAX_LOGPROBS, MAX_SEED, SamplingSpec
from baton.v1 import common_pb2

ids = st.lists(st.integers(0, 2**32 - 1), max_size=50).map(tuple)
seconds = st.integers(1, 10**8).map(lambda ms: ms / 1000) | st.just(math.inf)

deadlines = st.builds(
    Deadlines,
    queue=seconds,
    prefill=seconds,
    transfer=seconds,
    first_token=seconds,
    inter_token=seconds,
    total=seconds,
)
specs = st.builds(
    SamplingSpec,
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    seed=st.integers(0, MAX_SEED),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0, 100, exclude_min=True),
    logit_bias=st.dictionaries(st.integers(0, 2**32 - 1), st.floats(-100, 100), max_size=5),
    max_tokens=st.integers(10, 2**31 - 1),
    min_tokens=st.integers(0, 10),
    ignore_eos=st.booleans(),
    eos_ids=ids,
    grammar=st.text(max_size=30),
    logprobs=st.none() | st.integers(0, MAX_LOGPROBS),
)
generations = st.builds(
    Generation,
    key=st.builds(AttemptKey, st.text(max_size=20), st.integers(0, 99), st.integers(0, 9)),
    more_choices=st.lists(st.integers(10, 200), max_size=5, unique=True).map(tuple),
    prompt_ids=ids,
    generated_ids=ids,
    sampling=specs,
    deadlines=deadlines,
    priority=st.integers(-(2**31), 2**31 - 1),
    cache_salt=st.binary(max_size=16),
    traceparent=st.text(max_size=20),
)
timings = st.builds(
    Timings,
    queue=st.integers(0, 10**9).map(lambda us: us / 1e6),
    transfer_tail=st.integers(0, 10**9).map(lambda us: us / 1e6),
    prefill_cached_tokens=st.integers(0, 10**6),
    prefill_instance_id=st.text(max_size=32),
    transfer_bytes=st.integers(0, 2**50),
)


@given(generations)
def test_generation_survives(value: Generation) -> None:
    data = wire.generation_to_wire(value).SerializeToString()
    assert wire.generation_from_wire(common_pb2.Generation.FromString(data)) == value


def test_a_choice_named_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"\(3, 1, 3\) name one twice"):
        wire.generation_from_wire(common_pb2.Generation(choice_index=3, more_choices=[1, 3]))


def test_choices_apart_have_nothing_else_changed() -> None:
    value = Generation(AttemptKey("r", 2, 1), (5,), (), SamplingSpec(), UNLIMITED, 1, b"s")
    together = replace(value, more_choices=(3,))
    assert together.keys == (AttemptKey("r", 2, 1), AttemptKey("r", 2, 3))
    assert together.apart == [value, replace(value, key=AttemptKey("r", 2, 3))]


def test_log_probabilities_survive_and_uneven_ones_are_refused() -> None:
    values = [TokenLogprobs(-0.5), TokenLogprobs(-2.0, ((7, -0.25), (3, -1.5)))]
    messages = [wire.logprobs_to_wire(value) for value in values]
    assert wire.logprobs_from_wire(messages) == values
    with pytest.raises(ValueError, match="shorter"):
        wire.logprobs_from_wire([common_pb2.TokenLogprobs(top_ids=[1, 2], top_logprobs=[0.0])])


@given(timings)
def test_timings_survive(value: Timings) -> None:
    assert wire.timings_from_wire(wire.timings_to_wire(value)) == value


def test_identity_survives_with_and_without_a_class() -> None:
    compatibility = CompatibilityClass("rev", 30, 3, 64, 16)
    for value in (
        Identity("a" * 32, compatibility, "n", deterministic=True),
        Identity("b" * 32, None),
    ):
        assert wire.identity_from_wire(wire.identity_to_wire(value)) == value


@pytest.mark.parametrize("protocol", [0, PROTOCOL + 2])
def test_foreign_protocol_is_refused_with_both_versions(protocol: int) -> None:
    message = common_pb2.Identity(protocol=protocol, instance_id="x")
    with pytest.raises(IncompatiblePeer, match=rf"{protocol} there, .*{PROTOCOL} here"):
        wire.identity_from_wire(message)


def test_class_mismatch_names_every_field_with_both_values() -> None:
    prefill = Identity("p", CompatibilityClass("rev", 30, 3, 64, 16))
    decode = Identity("d", CompatibilityClass("rev", 32, 3, 64, 8))
    said = (
        "layers 30 of the prefill worker, 32 of the decode worker; "
        "block_size 16 of the prefill worker, 8 of the decode worker"
    )
    with pytest.raises(IncompatiblePeer, match=said):
        require_pair(prefill=prefill, decode=decode)


def test_what_no_worker_can_do_is_refused() -> None:
    message = common_pb2.SamplingSpec(
        top_p=1,
        repetition_penalty=1,
        max_tokens=1,
        grammar=common_pb2.Grammar(),  # of a kind that a later version may have
    )
    with pytest.raises(UnsupportedParameter):
        wire.sampling_from_wire(message)


@pytest.mark.parametrize("code", sorted(TABLE))
def test_every_row_of_the_error_table_survives(code: str) -> None:
    error = from_code(code, "what went wrong")
    back = wire.error_from_wire(wire.error_to_wire(error))
    assert (type(back), back.message) == (type(error), "what went wrong")
    assert error.to_openai()["error"]["code"] == error.code
    assert isinstance(error.grpc_code, grpc.StatusCode)


@pytest.mark.parametrize(("retryable", "code"), [(False, "internal_error"), (True, "no_capacity")])
def test_an_unknown_code_is_placed_again_where_its_sender_says_so(
    retryable: bool, code: str
) -> None:
    said = common_pb2.Error(code="from_the_future", message="?", retryable=retryable)
    error = wire.error_from_wire(said)
    assert (error.code, error.message, error.retryable) == (code, "?", retryable)


def test_a_peer_of_the_protocol_before_gets_codes_that_it_knows() -> None:
    """Those are the rows that came with protocol 2."""
    errors = [from_code(code, "?") for code in TABLE]
    changed = {
        error.code: said.code
        for error in errors
        if (said := wire.error_to_wire(error, PROTOCOL - 1)).code != error.code
    }
    assert changed == {
        "prefill_full": "prefill_lost",
        "prefill_draining": "prefill_lost",
        "prefill_silent": "prefill_lost",
        "decode_silent": "decode_lost",
    }
    assert all(wire.error_to_wire(error, PROTOCOL + 1).code == error.code for error in errors)


def test_every_finish_reason_survives() -> None:
    for reason in FinishReason:
        assert wire.finish_from_wire(wire.finish_to_wire(reason)) is reason
