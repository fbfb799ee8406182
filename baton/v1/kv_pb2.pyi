from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class KvReadRequest(_message.Message):
    __slots__ = ("kv_token", "stripe", "stripes")
    KV_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    kv_token: bytes
    stripe: int
    stripes: int
    def __init__(self, kv_token: _Optional[bytes] = ..., stripe: _Optional[int] = ..., stripes: _Optional[int] = ...) -> None: ...

class KvFrame(_message.Message):
    __slots__ = ("layer", "start_token", "end_token", "checksums", "payload")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    START_TOKEN_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    layer: int
    start_token: int
    end_token: int
    checksums: _containers.RepeatedScalarFieldContainer[int]
    payload: bytes
    def __init__(self, layer: _Optional[int] = ..., start_token: _Optional[int] = ..., end_token: _Optional[int] = ..., checksums: _Optional[_Iterable[int]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class TransportOffer(_message.Message):
    __slots__ = ("name", "version", "metadata", "unavailable", "checksums")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    metadata: bytes
    unavailable: str
    checksums: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., metadata: _Optional[bytes] = ..., unavailable: _Optional[str] = ..., checksums: _Optional[bool] = ...) -> None: ...

class TransportChoice(_message.Message):
    __slots__ = ("name", "address", "metadata", "downgrades", "checksums")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    DOWNGRADES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    metadata: bytes
    downgrades: _containers.RepeatedScalarFieldContainer[str]
    checksums: bool
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., metadata: _Optional[bytes] = ..., downgrades: _Optional[_Iterable[str]] = ..., checksums: _Optional[bool] = ...) -> None: ...

class NixlSource(_message.Message):
    __slots__ = ("agent", "address", "layers", "num_blocks", "block_bytes", "device", "seal_address", "blocks")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEAL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    agent: bytes
    address: int
    layers: int
    num_blocks: int
    block_bytes: int
    device: int
    seal_address: int
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, agent: _Optional[bytes] = ..., address: _Optional[int] = ..., layers: _Optional[int] = ..., num_blocks: _Optional[int] = ..., block_bytes: _Optional[int] = ..., device: _Optional[int] = ..., seal_address: _Optional[int] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...
