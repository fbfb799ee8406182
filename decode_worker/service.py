"""DecodeService: how a session begins and ends; what lies between is ``session.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import structlog
from google.protobuf.message import DecodeError

from baton import wire
from baton.errors import BatonError, ClientGone, InvalidRequest
from baton.streams import Writer
from baton.v1 import decode_pb2, decode_pb2_grpc
from decode_worker.attempt import Attempts
from decode_worker.session import Session
from model.worker.runtime import Runtime

log = structlog.get_logger(__name__)
Context = grpc.aio.ServicerContext[decode_pb2.SessionRequest, decode_pb2.SessionEvent]


class DecodeService(decode_pb2_grpc.DecodeServiceServicer):
    """One ``Session`` per call."""

    def __init__(self, runtime: Runtime, attempts: Attempts, *, queue_limit: int) -> None:
        self._runtime = runtime
        self._attempts = attempts
        self._queue_limit = queue_limit

    async def Session(  # type: ignore[override]  # noqa: N802 - a coroutine that writes
        self, requests: AsyncIterator[decode_pb2.SessionRequest], context: Context
    ) -> None:
        """What ends the session is its last message, unless the gateway is gone."""
        write = Writer(context, self._runtime.beat.patience)
        session = Session(
            self._runtime,
            self._attempts,
            requests,
            write,
            queue_limit=self._queue_limit,
        )
        try:
            await session.run()
        except ClientGone as gone:
            log.info("session over", peer=context.peer(), reason=gone.message)
        except (BatonError, DecodeError) as error:
            why = error
            if isinstance(why, DecodeError):
                why = InvalidRequest(f"this is no SessionRequest: {why}")
            log.warning("session ended", peer=context.peer(), code=why.code, reason=why.message)
            said = decode_pb2.SessionEvent(error=wire.error_to_wire(why, session.protocol))
            await write.abort(why.grpc_code, why.message, said)
