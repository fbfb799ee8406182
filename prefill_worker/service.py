"""PrefillService: how a Prefill call begins and ends; what lies between is ``call.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc
import structlog
from google.protobuf.message import DecodeError

from baton import wire
from baton.errors import BatonError, ClientGone, InternalError, InvalidRequest
from baton.kv.transport import Outlet
from baton.liveness import PeerSilent
from baton.streams import Writer
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from model.worker.runtime import Runtime
from prefill_worker.call import PrefillCall

log = structlog.get_logger(__name__)
Context = grpc.aio.ServicerContext[prefill_pb2.PrefillRequest, prefill_pb2.PrefillEvent]


class PrefillService(prefill_pb2_grpc.PrefillServiceServicer):
    """One ``PrefillCall`` per call."""

    def __init__(self, runtime: Runtime, outlets: Sequence[Outlet]) -> None:
        self._runtime = runtime
        self._outlets = outlets

    async def Prefill(  # type: ignore[override]  # noqa: N802 - a coroutine that writes, not a generator
        self, requests: AsyncIterator[prefill_pb2.PrefillRequest], context: Context
    ) -> None:
        """Whatever ends the call early is its last message; by then its memory is given up."""
        write = Writer(context, self._runtime.beat.patience)
        call = PrefillCall(self._runtime, self._outlets, requests, write)
        try:
            with self._runtime.census.call():
                await call.run()
            return
        except PeerSilent as silence:
            log.warning("decode worker lost", peer=context.peer(), reason=str(silence))
            await write.abort(grpc.StatusCode.UNAVAILABLE, str(silence))
            return
        except ClientGone as gone:
            log.info("prefill abandoned", peer=context.peer(), reason=gone.message)
            return
        except BatonError as error:
            failure = error
        except DecodeError as error:
            failure = InvalidRequest(f"this is no PrefillRequest: {error}")
        except Exception as error:
            log.exception("prefill failed")
            failure = InternalError(f"prefill failed: {error!r}")
        log.info("prefill ended early", code=failure.code, reason=failure.message)
        said = prefill_pb2.PrefillEvent(error=wire.error_to_wire(failure))
        await write.abort(failure.grpc_code, failure.message, said)
