"""The client: answers from one or several gateways, whole or as they come.

    asked.py      what a call asks for -> the body of its request       (pure)
    answer.py     the events of a stream -> chunks, and the answer       (pure)
    gateways.py   which gateway to ask, when again, when to give up      (pure)
    course.py     one answer, from its first request to its last token   (pure)
    http.py       connections, and HTTP's failures as errors of the table
    sync.py, aio.py       the same calls, blocking and not
    cluster.py, rpc.py    a gateway's workers, and what they are told

``course`` decides, ``sync`` and ``aio`` execute. A request that broke off is sent to the next
gateway with the token ids that are here (``baton_resume``), so it goes on with the very next one.
Nothing here imports torch, and only ``rpc`` needs gRPC.
"""

from baton.client.aio import AsyncClient, AsyncStream
from baton.client.answer import Answer, Choice, Chunk, Logprob, ToolCall, ToolCallDelta, Usage
from baton.client.asked import ChatOptions, GenerateOptions, Messages, Prompt
from baton.client.cluster import AsyncCluster, Cluster, Drained, RoleSet, Tls, Worker
from baton.client.sync import Client, Stream
from baton.deadlines import UNLIMITED, Deadlines

__all__ = [
    "UNLIMITED",
    "Answer",
    "AsyncClient",
    "AsyncCluster",
    "AsyncStream",
    "ChatOptions",
    "Choice",
    "Chunk",
    "Client",
    "Cluster",
    "Deadlines",
    "Drained",
    "GenerateOptions",
    "Logprob",
    "Messages",
    "Prompt",
    "RoleSet",
    "Stream",
    "Tls",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "Worker",
]
