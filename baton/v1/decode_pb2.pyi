from baton.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class SessionRequest(_message.Message):
    __slots__ = ("hello", "submit", "cancel", "heartbeat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    hello: _common_pb2.Identity
    submit: Submit
    cancel: Cancel
    heartbeat: _common_pb2.Heartbeat
    def __init__(self, hello: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., heartbeat: _Optional[_Union[_common_pb2.Heartbeat, _Mapping]] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("generation", "prefill", "tell_progress")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    TELL_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    generation: _common_pb2.Generation
    prefill: PrefillTarget
    tell_progress: bool
    def __init__(self, generation: _Optional[_Union[_common_pb2.Generation, _Mapping]] = ..., prefill: _Optional[_Union[PrefillTarget, _Mapping]] = ..., tell_progress: _Optional[bool] = ...) -> None: ...

class PrefillTarget(_message.Message):
    __slots__ = ("address", "instance_id", "queued_tokens", "prefill_us_per_token")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_US_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    address: str
    instance_id: str
    queued_tokens: int
    prefill_us_per_token: float
    def __init__(self, address: _Optional[str] = ..., instance_id: _Optional[str] = ..., queued_tokens: _Optional[int] = ..., prefill_us_per_token: _Optional[float] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request_id", "attempt", "choice_index")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    choice_index: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., choice_index: _Optional[int] = ...) -> None: ...

class SessionEvent(_message.Message):
    __slots__ = ("hello", "step", "heartbeat", "error")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    hello: _common_pb2.Identity
    step: StepOutput
    heartbeat: _common_pb2.Heartbeat
    error: _common_pb2.Error
    def __init__(self, hello: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., step: _Optional[_Union[StepOutput, _Mapping]] = ..., heartbeat: _Optional[_Union[_common_pb2.Heartbeat, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ...) -> None: ...

class StepOutput(_message.Message):
    __slots__ = ("tokens", "ended", "progress")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[TokenDelta]
    ended: _containers.RepeatedCompositeFieldContainer[Ended]
    progress: _containers.RepeatedCompositeFieldContainer[Progress]
    def __init__(self, tokens: _Optional[_Iterable[_Union[TokenDelta, _Mapping]]] = ..., ended: _Optional[_Iterable[_Union[Ended, _Mapping]]] = ..., progress: _Optional[_Iterable[_Union[Progress, _Mapping]]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("request_id", "attempt", "choice_index", "prefill_instance_id", "computed_tokens", "cached_tokens", "total_tokens", "kv_bytes", "kv_total_bytes", "kv_layers", "layers", "transport", "timings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    PREFILL_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_LAYERS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    choice_index: int
    prefill_instance_id: str
    computed_tokens: int
    cached_tokens: int
    total_tokens: int
    kv_bytes: int
    kv_total_bytes: int
    kv_layers: int
    layers: int
    transport: str
    timings: _common_pb2.Timings
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., choice_index: _Optional[int] = ..., prefill_instance_id: _Optional[str] = ..., computed_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., total_tokens: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., kv_total_bytes: _Optional[int] = ..., kv_layers: _Optional[int] = ..., layers: _Optional[int] = ..., transport: _Optional[str] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ...) -> None: ...

class TokenDelta(_message.Message):
    __slots__ = ("request_id", "attempt", "choice_index", "token_index", "token_ids", "cached_tokens", "logprobs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    choice_index: int
    token_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    cached_tokens: int
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., choice_index: _Optional[int] = ..., token_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., cached_tokens: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("request_id", "attempt", "choice_index", "finish_reason", "error", "timings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    choice_index: int
    finish_reason: FinishReason
    error: _common_pb2.Error
    timings: _common_pb2.Timings
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., choice_index: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ...) -> None: ...
