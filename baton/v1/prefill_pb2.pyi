from baton.v1 import common_pb2 as _common_pb2
from baton.v1 import kv_pb2 as _kv_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrefillRequest(_message.Message):
    __slots__ = ("start", "heartbeat", "received")
    START_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    start: PrefillStart
    heartbeat: _common_pb2.Heartbeat
    received: KvReceived
    def __init__(self, start: _Optional[_Union[PrefillStart, _Mapping]] = ..., heartbeat: _Optional[_Union[_common_pb2.Heartbeat, _Mapping]] = ..., received: _Optional[_Union[KvReceived, _Mapping]] = ...) -> None: ...

class PrefillStart(_message.Message):
    __slots__ = ("identity", "generation", "from_token", "transports")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    FROM_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    identity: _common_pb2.Identity
    generation: _common_pb2.Generation
    from_token: int
    transports: _containers.RepeatedCompositeFieldContainer[_kv_pb2.TransportOffer]
    def __init__(self, identity: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., generation: _Optional[_Union[_common_pb2.Generation, _Mapping]] = ..., from_token: _Optional[int] = ..., transports: _Optional[_Iterable[_Union[_kv_pb2.TransportOffer, _Mapping]]] = ...) -> None: ...

class KvReceived(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class PrefillEvent(_message.Message):
    __slots__ = ("accepted", "layer_ready", "first_token", "done", "heartbeat", "error")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LAYER_READY_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    accepted: PrefillAccepted
    layer_ready: LayerReady
    first_token: FirstToken
    done: PrefillDone
    heartbeat: _common_pb2.Heartbeat
    error: _common_pb2.Error
    def __init__(self, accepted: _Optional[_Union[PrefillAccepted, _Mapping]] = ..., layer_ready: _Optional[_Union[LayerReady, _Mapping]] = ..., first_token: _Optional[_Union[FirstToken, _Mapping]] = ..., done: _Optional[_Union[PrefillDone, _Mapping]] = ..., heartbeat: _Optional[_Union[_common_pb2.Heartbeat, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ...) -> None: ...

class PrefillAccepted(_message.Message):
    __slots__ = ("identity", "hit_tokens", "queued_tokens", "kv_token", "transport")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    identity: _common_pb2.Identity
    hit_tokens: int
    queued_tokens: int
    kv_token: bytes
    transport: _kv_pb2.TransportChoice
    def __init__(self, identity: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., hit_tokens: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., kv_token: _Optional[bytes] = ..., transport: _Optional[_Union[_kv_pb2.TransportChoice, _Mapping]] = ...) -> None: ...

class LayerReady(_message.Message):
    __slots__ = ("layer", "end_token")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_FIELD_NUMBER: _ClassVar[int]
    layer: int
    end_token: int
    def __init__(self, layer: _Optional[int] = ..., end_token: _Optional[int] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("token_id", "timings", "more_token_ids", "logprobs")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MORE_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    timings: _common_pb2.Timings
    more_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    def __init__(self, token_id: _Optional[int] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., more_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ...) -> None: ...

class PrefillDone(_message.Message):
    __slots__ = ("timings",)
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    timings: _common_pb2.Timings
    def __init__(self, timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ...) -> None: ...
