"""Between the shared values and their protobuf messages. Both directions of each stand together."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Sequence

from baton import errors, generation
from baton.deadlines import Deadlines
from baton.errors import BatonError, IncompatiblePeer, InvalidRequest, UnsupportedParameter
from baton.generation import (
    AttemptKey,
    FinishReason,
    Generation,
    Progress,
    Timings,
    TokenLogprobs,
)
from baton.identity import (
    MAX_BLOCK_SIZE,
    PROTOCOL,
    CompatibilityClass,
    Identity,
    Role,
    require_protocol,
)
from baton.sampling import SamplingSpec
from baton.v1 import common_pb2, decode_pb2, worker_pb2

_TO_WIRE = {
    FinishReason.STOP: decode_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: decode_pb2.FINISH_REASON_LENGTH,
}
_FROM_WIRE = {wire: reason for reason, wire in _TO_WIRE.items()}
_ROLE_TO_WIRE = {Role.PREFILL: worker_pb2.ROLE_PREFILL, Role.DECODE: worker_pb2.ROLE_DECODE}
_ROLE_FROM_WIRE = {wire: role for role, wire in _ROLE_TO_WIRE.items()}


def roles_to_wire(roles: Iterable[Role]) -> list[worker_pb2.Role]:
    return sorted(_ROLE_TO_WIRE[role] for role in roles)


def roles_from_wire(roles: Iterable[worker_pb2.Role]) -> frozenset[Role]:
    """A role of a later version is left out: the worker may have another that is known."""
    return frozenset(_ROLE_FROM_WIRE[role] for role in roles if role in _ROLE_FROM_WIRE)


def identity_to_wire(identity: Identity) -> common_pb2.Identity:
    message = common_pb2.Identity(
        protocol=identity.protocol,
        instance_id=identity.instance_id,
        numerics_id=identity.numerics_id,
        deterministic=identity.deterministic,
    )
    if identity.compatibility is not None:
        c = identity.compatibility
        message.compatibility.CopyFrom(
            common_pb2.CompatibilityClass(
                model_revision=c.model_revision,
                layers=c.layers,
                kv_heads=c.kv_heads,
                head_size=c.head_size,
                block_size=c.block_size,
                kv_dtype=c.kv_dtype,
                parallel=c.parallel,
            )
        )
    return message


def identity_from_wire(message: common_pb2.Identity) -> Identity:
    """Raises IncompatiblePeer when the peer's protocol version is not spoken here, or its blocks
    are of no size."""
    require_protocol(message.protocol)
    compatibility = None
    if message.HasField("compatibility"):
        c = message.compatibility
        if not 1 <= c.block_size <= MAX_BLOCK_SIZE:
            raise IncompatiblePeer(
                f"block_size {c.block_size} there, but it must be 1 to {MAX_BLOCK_SIZE}"
            )
        compatibility = CompatibilityClass(
            model_revision=c.model_revision,
            layers=c.layers,
            kv_heads=c.kv_heads,
            head_size=c.head_size,
            block_size=c.block_size,
            kv_dtype=c.kv_dtype,
            parallel=c.parallel,
        )
    return Identity(
        instance_id=message.instance_id,
        compatibility=compatibility,
        numerics_id=message.numerics_id,
        protocol=message.protocol,
        deterministic=message.deterministic,
    )


def error_to_wire(error: BatonError, protocol: int = PROTOCOL) -> common_pb2.Error:
    """In words that a peer of that ``protocol`` knows."""
    code = error.older_code if protocol < PROTOCOL and error.older_code else error.code
    return common_pb2.Error(code=code, message=error.message, retryable=error.retryable)


def error_from_wire(message: common_pb2.Error) -> BatonError:
    return errors.from_code(message.code, message.message, retryable=message.retryable)


def sampling_to_wire(spec: SamplingSpec) -> common_pb2.SamplingSpec:
    return common_pb2.SamplingSpec(
        temperature=spec.temperature,
        top_k=spec.top_k,
        top_p=spec.top_p,
        min_p=spec.min_p,
        seed=spec.seed,
        presence_penalty=spec.presence_penalty,
        frequency_penalty=spec.frequency_penalty,
        repetition_penalty=spec.repetition_penalty,
        logit_bias=dict(spec.logit_bias),
        max_tokens=spec.max_tokens,
        min_tokens=spec.min_tokens,
        ignore_eos=spec.ignore_eos,
        eos_ids=spec.eos_ids,
        grammar=common_pb2.Grammar(llguidance=spec.grammar) if spec.grammar else None,
        logprobs=spec.logprobs,
    )


def sampling_from_wire(message: common_pb2.SamplingSpec) -> SamplingSpec:
    """Raises InvalidRequest out of range, UnsupportedParameter for what this build cannot do."""
    if message.HasField("grammar") and not message.grammar.llguidance:
        raise UnsupportedParameter("grammar is of a kind unknown to this worker", param="grammar")
    return SamplingSpec(
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        seed=message.seed,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty,
        logit_bias=dict(message.logit_bias),
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        ignore_eos=message.ignore_eos,
        eos_ids=tuple(message.eos_ids),
        grammar=message.grammar.llguidance,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
    )


def _milliseconds(seconds: float) -> int:
    return 0 if math.isinf(seconds) else min(2**64 - 1, max(1, round(seconds * 1000)))


def _seconds(milliseconds: int) -> float:
    return milliseconds / 1000 if milliseconds else math.inf


def deadlines_to_wire(deadlines: Deadlines) -> common_pb2.Deadlines:
    return common_pb2.Deadlines(
        queue_ms=_milliseconds(deadlines.queue),
        prefill_ms=_milliseconds(deadlines.prefill),
        transfer_ms=_milliseconds(deadlines.transfer),
        first_token_ms=_milliseconds(deadlines.first_token),
        inter_token_ms=_milliseconds(deadlines.inter_token),
        total_ms=_milliseconds(deadlines.total),
    )


def deadlines_from_wire(message: common_pb2.Deadlines) -> Deadlines:
    return Deadlines(
        queue=_seconds(message.queue_ms),
        prefill=_seconds(message.prefill_ms),
        transfer=_seconds(message.transfer_ms),
        first_token=_seconds(message.first_token_ms),
        inter_token=_seconds(message.inter_token_ms),
        total=_seconds(message.total_ms),
    )


def generation_to_wire(value: Generation) -> common_pb2.Generation:
    return common_pb2.Generation(
        request_id=value.key.request_id,
        attempt=value.key.attempt,
        choice_index=value.key.choice_index,
        prompt_ids=value.prompt_ids,
        generated_ids=value.generated_ids,
        sampling=sampling_to_wire(value.sampling),
        deadlines=deadlines_to_wire(value.deadlines),
        priority=value.priority,
        cache_salt=value.cache_salt,
        traceparent=value.traceparent,
        more_choices=value.more_choices,
    )


def generation_from_wire(message: common_pb2.Generation) -> Generation:
    """Raises InvalidRequest or UnsupportedParameter, as ``sampling_from_wire``; InvalidRequest
    for a choice that is named twice."""
    choices = (message.choice_index, *message.more_choices)
    if len(set(choices)) < len(choices):
        raise InvalidRequest(
            f"the choices {reprlib.repr(choices)} name one twice", param="more_choices"
        )
    return Generation(
        key=AttemptKey(message.request_id, message.attempt, message.choice_index),
        prompt_ids=tuple(message.prompt_ids),
        generated_ids=tuple(message.generated_ids),
        sampling=sampling_from_wire(message.sampling),
        deadlines=deadlines_from_wire(message.deadlines),
        priority=message.priority,
        cache_salt=message.cache_salt,
        traceparent=message.traceparent,
        more_choices=choices[1:],
    )


def timings_to_wire(value: Timings) -> common_pb2.Timings:
    return common_pb2.Timings(
        queue_us=round(value.queue * 1e6),
        prefill_us=round(value.prefill * 1e6),
        transfer_us=round(value.transfer * 1e6),
        transfer_tail_us=round(value.transfer_tail * 1e6),
        decode_us=round(value.decode * 1e6),
        prefill_cached_tokens=value.prefill_cached_tokens,
        decode_cached_tokens=value.decode_cached_tokens,
        prefill_instance_id=value.prefill_instance_id,
        transfer_bytes=value.transfer_bytes,
    )


def timings_from_wire(message: common_pb2.Timings) -> Timings:
    return Timings(
        queue=message.queue_us / 1e6,
        prefill=message.prefill_us / 1e6,
        transfer=message.transfer_us / 1e6,
        transfer_tail=message.transfer_tail_us / 1e6,
        decode=message.decode_us / 1e6,
        prefill_cached_tokens=message.prefill_cached_tokens,
        decode_cached_tokens=message.decode_cached_tokens,
        prefill_instance_id=message.prefill_instance_id,
        transfer_bytes=message.transfer_bytes,
    )


def logprobs_to_wire(value: TokenLogprobs) -> common_pb2.TokenLogprobs:
    """As float32."""
    return common_pb2.TokenLogprobs(
        logprob=value.logprob,
        top_ids=[token_id for token_id, _ in value.top],
        top_logprobs=[logprob for _, logprob in value.top],
    )


def logprobs_from_wire(messages: Sequence[common_pb2.TokenLogprobs]) -> list[TokenLogprobs]:
    """Raises ValueError for one whose two lists differ in length, or that is no number."""
    if not all(math.isfinite(x) for m in messages for x in (m.logprob, *m.top_logprobs)):
        raise ValueError("a log probability is not finite")
    return [
        TokenLogprobs(m.logprob, tuple(zip(m.top_ids, m.top_logprobs, strict=True)))
        for m in messages
    ]


def progress_to_wire(value: Progress) -> decode_pb2.Progress:
    message = decode_pb2.Progress(
        request_id=value.key.request_id,
        attempt=value.key.attempt,
        choice_index=value.key.choice_index,
        prefill_instance_id=value.prefill_instance_id,
        computed_tokens=value.computed_tokens,
        cached_tokens=value.cached_tokens,
        total_tokens=value.total_tokens,
        kv_bytes=value.kv_bytes,
        kv_total_bytes=value.kv_total_bytes,
        kv_layers=value.kv_layers,
        layers=value.layers,
        transport=value.transport,
    )
    if value.timings is not None:
        message.timings.CopyFrom(timings_to_wire(value.timings))
    return message


def progress_from_wire(message: decode_pb2.Progress) -> Progress:
    return Progress(
        key=AttemptKey(message.request_id, message.attempt, message.choice_index),
        prefill_instance_id=message.prefill_instance_id,
        computed_tokens=message.computed_tokens,
        cached_tokens=message.cached_tokens,
        total_tokens=message.total_tokens,
        kv_bytes=message.kv_bytes,
        kv_total_bytes=message.kv_total_bytes,
        kv_layers=message.kv_layers,
        layers=message.layers,
        transport=message.transport,
        timings=timings_from_wire(message.timings) if message.HasField("timings") else None,
    )


def finish_to_wire(reason: FinishReason) -> decode_pb2.FinishReason:
    return _TO_WIRE[reason]


def finish_from_wire(value: decode_pb2.FinishReason) -> generation.FinishReason:
    """Raises KeyError for a reason this build does not know."""
    return _FROM_WIRE[value]
