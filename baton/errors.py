"""The error table: every way Baton says no, and how each is rendered on every wire.

    BatonError
      RequestError            the client's fault: never retried
        InvalidRequest          400  a field is missing, of the wrong type or out of range
        UnsupportedParameter    400  a field this build does not implement; never ignored
        ContextLengthExceeded   400  prompt or prompt + max_tokens over the limit; names both
        InvalidApiKey           401  no API key, or one that is not in the gateway's file
        ModelNotFound           404  the request names a model this fleet does not serve
        RouteNotFound           404  no such path
        MethodNotAllowed        405  the path is there, but not for this method
        BodyTimeout             408  the HTTP body did not arrive in time
        BodyTooLarge            413  the HTTP body is over the limit
        HeadTimeout             408  the HTTP head did not arrive in time
        HostNotKnown            421  the Host header has a name that is not ours
        IdempotencyConflict     422  an Idempotency-Key that came with another request before
        KvOverflow              422  a K or V value does not fit FP16; names layer and value
        HeadTooLarge            431  the HTTP head is over the limit, in bytes or header fields
        AnswerFinished          400  an answer that is to be gone on with has ended; says how
      CapacityError           nothing is wrong but there is no room; says when to come again
        QueueFull               429  the gateway's admission queue is full
        DeadlineOutOfReach      429  too much is ahead for the first token to come in time
        RateLimited             429  the API key's own limits are reached
        NoWorker                503  no healthy worker of the class is there
        WorkerFull              503  too few free KV blocks; another attempt may find room
        PrefillFull             503  the same, said by the prefill worker of an attempt
        TooManyConnections      503  the port has as many open as it may
        BodiesFull              503  the HTTP bodies of requests under way take all they may
        Draining                503  a worker is leaving; place the request elsewhere
        PrefillDraining         503  the same of the prefill worker of an attempt
        Preempted               503  a sequence gave its blocks to an older one
      PeerError               a process or the network between failed
        PrefillLost             502  the prefill worker died, stalled or refused
        PrefillSilent           502  the prefill worker says nothing: do not ask it again
        DecodeLost              502  the decode worker or the session with it is gone
        DecodeSilent            502  the decode worker says or hears nothing: do not ask it again
        RelayRefused            502  a relay does not know the worker, or has no room
        HandoffFailed           502  KV with a gap, overlap, duplicate or short block
        IncompatiblePeer        502  protocol version or compatibility class differ; names both
        GatewayLost             502  said by clients: no gateway answers, or one died in mid-answer
      DeadlineExceeded        504  a phase's deadline passed; names the phase
      ClientGone              499  the client closed the connection
      InternalError           500  a defect of ours

``retryable`` means: the gateway may place the request again as attempt k+1 (the one recovery
path); it says nothing about whether a client should ask again.

Clients have the same classes, without gRPC: it is imported where a server asks for its code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import grpc


class BatonError(Exception):
    """Root of the table. Subclasses only fill in the columns."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"  #: the name of a status code
    retryable: ClassVar[bool] = False
    #: Attributes, with defaults, that travel in an HTTP body beside the message.
    details: ClassVar[tuple[str, ...]] = ()
    #: What peers of the protocol before are told, where they do not know ``code``.
    older_code: ClassVar[str] = ""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def grpc_code(self) -> grpc.StatusCode:
        from grpc import StatusCode

        return StatusCode[self.grpc_status]

    def to_openai(self) -> dict[str, Any]:
        """The body of an HTTP error, and the data of an SSE error event (OpenAI's error shape)."""
        kind = "invalid_request_error" if isinstance(self, RequestError) else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
                **{name: getattr(self, name) for name in self.details},
            }
        }


class RequestError(BatonError):
    code = "invalid_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class InvalidRequest(RequestError):
    pass


class UnsupportedParameter(RequestError):
    code = "unsupported_parameter"


class ContextLengthExceeded(RequestError):
    code = "context_length_exceeded"
    grpc_status = "OUT_OF_RANGE"


class InvalidApiKey(RequestError):
    code = "invalid_api_key"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class ModelNotFound(RequestError):
    code = "model_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"


class RouteNotFound(RequestError):
    code = "route_not_found"
    http_status = 404
    grpc_status = "UNIMPLEMENTED"


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"
    http_status = 405
    grpc_status = "UNIMPLEMENTED"


class BodyTimeout(RequestError):
    code = "body_timeout"
    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"


class HeadTimeout(RequestError):
    code = "head_timeout"
    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"


class HeadTooLarge(RequestError):
    code = "head_too_large"
    http_status = 431


class BodyTooLarge(RequestError):
    code = "body_too_large"
    http_status = 413


class HostNotKnown(RequestError):
    code = "host_not_known"
    http_status = 421


class IdempotencyConflict(RequestError):
    code = "idempotency_conflict"
    http_status = 422


class KvOverflow(RequestError):
    code = "kv_overflow"
    http_status = 422
    grpc_status = "OUT_OF_RANGE"


class AnswerFinished(RequestError):
    code = "answer_finished"
    details = ("finish_reason",)
    finish_reason = ""  #: as the answer would have had it

    def __init__(self, message: str, *, finish_reason: str, param: str) -> None:
        super().__init__(message, param=param)
        self.finish_reason = finish_reason


class CapacityError(BatonError):
    code = "no_capacity"
    http_status = 503
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True
    details = ("retry_after",)
    retry_after: float = 1.0  #: seconds after which a client may come again; a guess if not given

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = float(retry_after)


class QueueFull(CapacityError):
    code = "queue_full"
    http_status = 429
    retryable = False


class DeadlineOutOfReach(CapacityError):
    code = "deadline_out_of_reach"
    http_status = 429
    retryable = False


class RateLimited(CapacityError):
    code = "rate_limit_exceeded"
    http_status = 429
    retryable = False


class NoWorker(CapacityError):
    code = "no_worker"
    grpc_status = "UNAVAILABLE"


class BodiesFull(CapacityError):
    code = "bodies_full"
    retryable = False


class TooManyConnections(CapacityError):
    code = "too_many_connections"
    retryable = False


class WorkerFull(CapacityError):
    code = "worker_full"


class PrefillFull(WorkerFull):
    code = "prefill_full"
    older_code = "prefill_lost"


class Draining(CapacityError):
    code = "draining"
    grpc_status = "UNAVAILABLE"


class PrefillDraining(Draining):
    code = "prefill_draining"
    older_code = "prefill_lost"


class Preempted(CapacityError):
    code = "preempted"
    grpc_status = "ABORTED"


class PeerError(BatonError):
    code = "peer_error"
    http_status = 502
    grpc_status = "UNAVAILABLE"
    retryable = True


class PrefillLost(PeerError):
    code = "prefill_lost"


class PrefillSilent(PrefillLost):
    code = "prefill_silent"
    older_code = "prefill_lost"


class DecodeLost(PeerError):
    code = "decode_lost"


class DecodeSilent(DecodeLost):
    code = "decode_silent"
    older_code = "decode_lost"


class RelayRefused(PeerError):
    code = "relay_refused"
    grpc_status = "FAILED_PRECONDITION"  # UNAVAILABLE is a relay that does not answer


class HandoffFailed(PeerError):
    code = "handoff_failed"
    grpc_status = "DATA_LOSS"


class IncompatiblePeer(PeerError):
    code = "incompatible_peer"
    grpc_status = "FAILED_PRECONDITION"


class GatewayLost(PeerError):
    code = "gateway_lost"


class DeadlineExceeded(BatonError):
    code = "deadline_exceeded"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    details = ("phase",)
    phase = ""  #: empty when a peer reported it: only its message says which

    def __init__(self, phase: str, seconds: float) -> None:
        super().__init__(f"deadline exceeded in phase '{phase}': {seconds:g} s allowed")
        self.phase = phase


class ClientGone(BatonError):
    code = "client_gone"
    http_status = 499
    grpc_status = "CANCELLED"


class InternalError(BatonError):
    pass


def _leaves(cls: type[BatonError]) -> list[type[BatonError]]:
    found = [cls]
    for child in cls.__subclasses__():
        found += _leaves(child)
    return found


#: code -> class; of a class and its parent with one code, the class.
TABLE: dict[str, type[BatonError]] = {cls.code: cls for cls in _leaves(BatonError)}


def from_code(code: str, message: str, *, retryable: bool = False) -> BatonError:
    """Rebuild an error that arrived over the wire.

    A code that is unknown here is of a later version, or a defect: it becomes CapacityError where
    the peer called it ``retryable``, so that no request fails for it, and InternalError otherwise.
    """
    cls = TABLE.get(code, CapacityError if retryable else InternalError)
    error = cls.__new__(cls)
    BatonError.__init__(error, message)
    return error


def from_openai(body: object) -> BatonError:
    """Rebuild an error from the body of an HTTP error or the data of an SSE error event.

    Raises ValueError for anything else.
    """
    match body:
        case {"error": {"code": str(code), "message": str(message)} as said}:
            error = from_code(code, message)
        case _:
            raise ValueError(f"not an error of Baton's: {body!r}")
    if isinstance(param := said.get("param"), str):
        error.param = param
    for name in error.details:
        value = said.get(name)
        if isinstance(value, type(getattr(error, name))):
            setattr(error, name, value)
    return error
