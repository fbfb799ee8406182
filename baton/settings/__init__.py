"""Every setting of every process, defined once: flag, environment variable and YAML key.

``--max-queue-tokens 5``, ``BATON_MAX_QUEUE_TOKENS=5`` and ``max_queue_tokens: 5`` in the file
named by ``--config`` (or ``BATON_CONFIG``) are the same setting; the earlier wins. A default
stands here and nowhere else.

    process.py   what every process has
    worker.py    prefill and decode workers
    gateway.py   the gateway and the relay
    up.py        ``baton up``
"""

from __future__ import annotations

from baton.settings.gateway import (
    AccessSettings,
    CacheScope,
    FleetSettings,
    FrontSettings,
    GatewaySettings,
    HealthSettings,
    HttpSettings,
    PlacementName,
    ReasoningFormatName,
    RelaySettings,
    ToolFormatName,
)
from baton.settings.process import (
    ModelSettings,
    ProcessSettings,
    TlsSettings,
    TracingSettings,
)
from baton.settings.up import (
    UpSettings,
)
from baton.settings.worker import (
    MAX_STRIPES,
    AttentionChoice,
    ComputeSettings,
    DecodeSettings,
    Dtype,
    HandoffSettings,
    KvChecksums,
    LocalPrefillSettings,
    PrefillOrder,
    PrefillSettings,
    Quantize,
    ReadingSettings,
    RoleSettings,
    WorkerRole,
    WorkerSettings,
)

__all__ = [
    "MAX_STRIPES",
    "AccessSettings",
    "AttentionChoice",
    "CacheScope",
    "ComputeSettings",
    "DecodeSettings",
    "Dtype",
    "FleetSettings",
    "FrontSettings",
    "GatewaySettings",
    "HandoffSettings",
    "HealthSettings",
    "HttpSettings",
    "KvChecksums",
    "LocalPrefillSettings",
    "ModelSettings",
    "PlacementName",
    "PrefillOrder",
    "PrefillSettings",
    "ProcessSettings",
    "Quantize",
    "ReadingSettings",
    "ReasoningFormatName",
    "RelaySettings",
    "RoleSettings",
    "TlsSettings",
    "ToolFormatName",
    "TracingSettings",
    "UpSettings",
    "WorkerRole",
    "WorkerSettings",
]
