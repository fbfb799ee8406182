from baton.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_PREFILL: _ClassVar[Role]
    ROLE_DECODE: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_PREFILL: Role
ROLE_DECODE: Role

class WatchRequest(_message.Message):
    __slots__ = ("identity", "cache_changes", "controls_roles")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_CHANGES_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_ROLES_FIELD_NUMBER: _ClassVar[int]
    identity: _common_pb2.Identity
    cache_changes: bool
    controls_roles: bool
    def __init__(self, identity: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., cache_changes: _Optional[bool] = ..., controls_roles: _Optional[bool] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("identity", "roles", "local_prefill", "model", "max_model_len", "load", "transports", "draining", "vocab_size", "sequence", "prefill_decisions", "kv_pairings", "failing", "tls", "refused", "cache", "possible_roles", "roles_since_ms", "controller", "max_running")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    LOCAL_PREFILL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_DECISIONS_FIELD_NUMBER: _ClassVar[int]
    KV_PAIRINGS_FIELD_NUMBER: _ClassVar[int]
    FAILING_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    POSSIBLE_ROLES_FIELD_NUMBER: _ClassVar[int]
    ROLES_SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    identity: _common_pb2.Identity
    roles: _containers.RepeatedScalarFieldContainer[Role]
    local_prefill: bool
    model: str
    max_model_len: int
    load: Load
    transports: _containers.RepeatedCompositeFieldContainer[TransportCapability]
    draining: bool
    vocab_size: int
    sequence: int
    prefill_decisions: _containers.RepeatedCompositeFieldContainer[PrefillDecision]
    kv_pairings: _containers.RepeatedCompositeFieldContainer[KvPairing]
    failing: bool
    tls: bool
    refused: _containers.RepeatedCompositeFieldContainer[Refusals]
    cache: CacheChanges
    possible_roles: _containers.RepeatedScalarFieldContainer[Role]
    roles_since_ms: int
    controller: str
    max_running: int
    def __init__(self, identity: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., roles: _Optional[_Iterable[_Union[Role, str]]] = ..., local_prefill: _Optional[bool] = ..., model: _Optional[str] = ..., max_model_len: _Optional[int] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., transports: _Optional[_Iterable[_Union[TransportCapability, _Mapping]]] = ..., draining: _Optional[bool] = ..., vocab_size: _Optional[int] = ..., sequence: _Optional[int] = ..., prefill_decisions: _Optional[_Iterable[_Union[PrefillDecision, _Mapping]]] = ..., kv_pairings: _Optional[_Iterable[_Union[KvPairing, _Mapping]]] = ..., failing: _Optional[bool] = ..., tls: _Optional[bool] = ..., refused: _Optional[_Iterable[_Union[Refusals, _Mapping]]] = ..., cache: _Optional[_Union[CacheChanges, _Mapping]] = ..., possible_roles: _Optional[_Iterable[_Union[Role, str]]] = ..., roles_since_ms: _Optional[int] = ..., controller: _Optional[str] = ..., max_running: _Optional[int] = ...) -> None: ...

class Refusals(_message.Message):
    __slots__ = ("reason", "count")
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    reason: str
    count: int
    def __init__(self, reason: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("queued_tokens", "running", "waiting", "blocks_free", "blocks_cached", "blocks_owned", "blocks_quarantined", "steps", "last_step_us", "prefill_us_per_token", "prefill_room", "cache_hit_tokens", "prompt_tokens", "generated_tokens")
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_CACHED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_OWNED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_US_FIELD_NUMBER: _ClassVar[int]
    PREFILL_US_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PREFILL_ROOM_FIELD_NUMBER: _ClassVar[int]
    CACHE_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queued_tokens: int
    running: int
    waiting: int
    blocks_free: int
    blocks_cached: int
    blocks_owned: int
    blocks_quarantined: int
    steps: int
    last_step_us: int
    prefill_us_per_token: float
    prefill_room: int
    cache_hit_tokens: int
    prompt_tokens: int
    generated_tokens: int
    def __init__(self, queued_tokens: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., blocks_free: _Optional[int] = ..., blocks_cached: _Optional[int] = ..., blocks_owned: _Optional[int] = ..., blocks_quarantined: _Optional[int] = ..., steps: _Optional[int] = ..., last_step_us: _Optional[int] = ..., prefill_us_per_token: _Optional[float] = ..., prefill_room: _Optional[int] = ..., cache_hit_tokens: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ...) -> None: ...

class PrefillDecision(_message.Message):
    __slots__ = ("local", "reason", "count")
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    local: bool
    reason: str
    count: int
    def __init__(self, local: _Optional[bool] = ..., reason: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class KvPairing(_message.Message):
    __slots__ = ("instance_id", "address", "transport", "downgrades", "checksums", "stripes", "complete", "failed", "bytes", "bytes_per_s")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    DOWNGRADES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    address: str
    transport: str
    downgrades: _containers.RepeatedScalarFieldContainer[str]
    checksums: bool
    stripes: int
    complete: int
    failed: int
    bytes: int
    bytes_per_s: float
    def __init__(self, instance_id: _Optional[str] = ..., address: _Optional[str] = ..., transport: _Optional[str] = ..., downgrades: _Optional[_Iterable[str]] = ..., checksums: _Optional[bool] = ..., stripes: _Optional[int] = ..., complete: _Optional[int] = ..., failed: _Optional[int] = ..., bytes: _Optional[int] = ..., bytes_per_s: _Optional[float] = ...) -> None: ...

class TransportCapability(_message.Message):
    __slots__ = ("name", "version", "unavailable")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    unavailable: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., unavailable: _Optional[str] = ...) -> None: ...

class CacheChanges(_message.Message):
    __slots__ = ("position", "since", "whole", "entered", "left")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    ENTERED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    position: int
    since: int
    whole: bool
    entered: bytes
    left: bytes
    def __init__(self, position: _Optional[int] = ..., since: _Optional[int] = ..., whole: _Optional[bool] = ..., entered: _Optional[bytes] = ..., left: _Optional[bytes] = ...) -> None: ...

class CheckIntegrityRequest(_message.Message):
    __slots__ = ("idle",)
    IDLE_FIELD_NUMBER: _ClassVar[int]
    idle: bool
    def __init__(self, idle: _Optional[bool] = ...) -> None: ...

class IntegrityReport(_message.Message):
    __slots__ = ("violations", "load", "tasks", "tasks_at_start", "calls", "descriptors", "descriptors_at_start")
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    TASKS_AT_START_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTORS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTORS_AT_START_FIELD_NUMBER: _ClassVar[int]
    violations: _containers.RepeatedScalarFieldContainer[str]
    load: Load
    tasks: int
    tasks_at_start: int
    calls: int
    descriptors: int
    descriptors_at_start: int
    def __init__(self, violations: _Optional[_Iterable[str]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., tasks: _Optional[int] = ..., tasks_at_start: _Optional[int] = ..., calls: _Optional[int] = ..., descriptors: _Optional[int] = ..., descriptors_at_start: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("grace_ms",)
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    grace_ms: int
    def __init__(self, grace_ms: _Optional[int] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("handed_back",)
    HANDED_BACK_FIELD_NUMBER: _ClassVar[int]
    handed_back: int
    def __init__(self, handed_back: _Optional[int] = ...) -> None: ...

class SetRolesRequest(_message.Message):
    __slots__ = ("roles", "grace_ms", "controller")
    ROLES_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    roles: _containers.RepeatedScalarFieldContainer[Role]
    grace_ms: int
    controller: str
    def __init__(self, roles: _Optional[_Iterable[_Union[Role, str]]] = ..., grace_ms: _Optional[int] = ..., controller: _Optional[str] = ...) -> None: ...

class SetRolesReply(_message.Message):
    __slots__ = ("roles", "handed_back", "finishing")
    ROLES_FIELD_NUMBER: _ClassVar[int]
    HANDED_BACK_FIELD_NUMBER: _ClassVar[int]
    FINISHING_FIELD_NUMBER: _ClassVar[int]
    roles: _containers.RepeatedScalarFieldContainer[Role]
    handed_back: int
    finishing: int
    def __init__(self, roles: _Optional[_Iterable[_Union[Role, str]]] = ..., handed_back: _Optional[int] = ..., finishing: _Optional[int] = ...) -> None: ...
