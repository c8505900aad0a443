"""The one error tree of both sides, and how answers of the sidecar become part of it.

Switch on the class or on `reason`; expect reasons that this version does not know. The tree:

    SidecarError                code, reason, message, retry_after_s, incident_id, violations, definite
    ├── TransportError          the transport's own failure, without a reason: deadline, lost connection, cancelled
    ├── TokenError              TOKEN_MISSING, TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_REVOKED
    ├── PermissionDenied
    │   ├── IsolationViolation
    │   ├── ScopeMissing
    │   └── ServiceDenied
    ├── ManagerGone             the connection context has ended
    ├── ResourceExhausted
    │   ├── OutboxFull, UserLimit, RateLimited, AgentBusy
    ├── AlreadyExists
    │   ├── MessageIdReused, SubscriptionTaken
    ├── BadRequest              violations: ((field, description), ...)
    ├── FailedPrecondition
    │   ├── DurabilityUnavailable, StreamCancelled, StreamEnded, StreamOutOfOrder, LaneNotOpen
    ├── Unavailable
    │   ├── Draining, ClusterUnavailable, StorageUnavailable, AuditUnavailable, OutcomeUnknown, NoAgent
    ├── Unsupported             in the contract, not served by this sidecar
    └── Internal                incident_id: what the sidecar's log calls it

    ConnectionEnded             a user's connection is over and will not come back: code, reason
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN: Final = "sidecar"
Violations = tuple[tuple[str, str], ...]


class SidecarError(Exception):
    """A call was refused or failed.

    `code` is the gRPC status; `reason` the catalogue's name ("" where the transport failed); `message` the sidecar's
    fixed text, which holds nothing of the request; `retry_after_s` seconds, where a retry helps.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str = "",
        message: str = "",
        *,
        retry_after_s: float | None = None,
        incident_id: str = "",
        violations: Violations = (),
    ) -> None:
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.incident_id = incident_id
        self.violations = violations
        self.unanswered_before = False
        """The same was tried before, and that try had no answer."""
        super().__init__(message)

    @property
    def definite(self) -> bool:
        """True: nothing was changed. False: it may have been; repeat it with the same message_id, or not at all.

        A refusal speaks of its own try: behind one that had no answer it is not definite either.
        """
        return self._tells_all() and not self.unanswered_before

    def _tells_all(self) -> bool:
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles as itself: one outcome may be the answer to many callers, each with a traceback."""
        rest = {name: getattr(self, name) for name in ("retry_after_s", "incident_id", "violations")}
        state = {"unanswered_before": self.unanswered_before}
        return _rebuilt, (type(self), (self.code, self.reason, self.message), rest), state

    def __str__(self) -> str:
        text = f"{self.reason or self.code.name}: {self.message}"
        if self.violations:
            text += "".join(f"; {field}: {description}" for field, description in self.violations)
        return f"{text} (incident {self.incident_id})" if self.incident_id else text


def _rebuilt(kind: type[SidecarError], text: tuple[grpc.StatusCode, str, str], rest: dict[str, Any]) -> SidecarError:
    return kind(*text, **rest)


class TransportError(SidecarError):
    """No answer of the sidecar's: a deadline that passed, a connection that broke, a call that was cancelled."""

    def _tells_all(self) -> bool:
        """Only of a method that the sidecar does not have."""
        return self.code is grpc.StatusCode.UNIMPLEMENTED


class TokenError(SidecarError):
    """The context token (or user token, or service token) is missing, not good, expired or revoked."""


class PermissionDenied(SidecarError):
    """A good token that does not open this."""


class IsolationViolation(PermissionDenied):
    """The token's isolation key is not the request's, or expected_user_id is another user. Says nothing of either."""


class ScopeMissing(PermissionDenied):
    """The token lacks the scope that the call needs."""


class ServiceDenied(PermissionDenied):
    """This service may not make this call, or not for this tenant or scope."""


class ManagerGone(SidecarError):
    """The token's connection context has ended. Says nothing of an earlier try."""


class ResourceExhausted(SidecarError):
    """A limit is reached; `retry_after_s` says when to try again."""


class OutboxFull(ResourceExhausted):
    """The context's outbox is full: its client is away or slow."""


class UserLimit(ResourceExhausted):
    """A limit of the token's own user."""


class RateLimited(ResourceExhausted):
    """Too many calls, messages or attempts for now."""


class AgentBusy(ResourceExhausted):
    """The agent service that takes a user's message has no room for it now."""


class AlreadyExists(SidecarError):
    """The name is taken."""


class MessageIdReused(AlreadyExists):
    """The message_id was used for a message with other content."""


class SubscriptionTaken(AlreadyExists):
    """Another service holds this subscription."""


class BadRequest(SidecarError):
    """A field is missing, over its limit or not what it says; `violations` names it and the rule."""


class FailedPrecondition(SidecarError):
    """The state of things does not allow this."""


class DurabilityUnavailable(FailedPrecondition):
    """The sidecar's store does not give the durability asked for."""


class StreamCancelled(FailedPrecondition):
    """The client wants no more of this response stream."""


class StreamEnded(FailedPrecondition):
    """The response stream has had its last chunk."""


class StreamOutOfOrder(FailedPrecondition):
    """The chunk's index is ahead of the next."""


class LaneNotOpen(FailedPrecondition):
    """The item names a lane that is not open on this stream."""


class Unavailable(SidecarError):
    """Not now; `retry_after_s` says when to try again."""


class Draining(Unavailable):
    """The sidecar is about to stop and takes no more of this."""


class ClusterUnavailable(Unavailable):
    """The sidecar cannot reach its cluster."""


class StorageUnavailable(Unavailable):
    """The sidecar cannot reach its store."""


class AuditUnavailable(Unavailable):
    """The audit trail cannot be written, and this call needs its record first."""


class OutcomeUnknown(Unavailable):
    """The store did not say whether it took the message. Not definite."""

    def _tells_all(self) -> bool:
        return False


class NoAgent(Unavailable):
    """No agent service takes a user's message."""


class Unsupported(SidecarError):
    """In the contract, but not served by this sidecar."""


class Internal(SidecarError):
    """Something unforeseen in the sidecar; its log knows more under `incident_id`. Not definite."""

    def _tells_all(self) -> bool:
        return False


class ConnectionEnded(Exception):
    """A user's connection is over and connecting again would be no use.

    `code` is the WebSocket close code (4501 for a bad token, 4505 for a context that a service ended, ...), or the HTTP
    status (below 1000) where the handshake was refused; `reason` the close text.
    """

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code} {reason}".rstrip())


_BY_REASON: Final[dict[str, type[SidecarError]]] = {
    "TOKEN_MISSING": TokenError,
    "TOKEN_INVALID": TokenError,
    "TOKEN_EXPIRED": TokenError,
    "TOKEN_REVOKED": TokenError,
    "ISOLATION_VIOLATION": IsolationViolation,
    "SCOPE_MISSING": ScopeMissing,
    "SERVICE_DENIED": ServiceDenied,
    "MANAGER_GONE": ManagerGone,
    "OUTBOX_FULL": OutboxFull,
    "USER_LIMIT": UserLimit,
    "RATE_LIMITED": RateLimited,
    "MESSAGE_ID_REUSED": MessageIdReused,
    "SUBSCRIPTION_TAKEN": SubscriptionTaken,
    "BAD_REQUEST": BadRequest,
    "DURABILITY_UNAVAILABLE": DurabilityUnavailable,
    "STREAM_CANCELLED": StreamCancelled,
    "STREAM_ENDED": StreamEnded,
    "STREAM_OUT_OF_ORDER": StreamOutOfOrder,
    "LANE_NOT_OPEN": LaneNotOpen,
    "DRAINING": Draining,
    "CLUSTER_UNAVAILABLE": ClusterUnavailable,
    "STORAGE_UNAVAILABLE": StorageUnavailable,
    "AUDIT_UNAVAILABLE": AuditUnavailable,
    "UNSUPPORTED": Unsupported,
    "OUTCOME_UNKNOWN": OutcomeUnknown,
    "INTERNAL": Internal,
    "NO_AGENT": NoAgent,
    "AGENT_BUSY": AgentBusy,
}
_BY_CODE: Final[dict[grpc.StatusCode, type[SidecarError]]] = {
    grpc.StatusCode.UNAUTHENTICATED: TokenError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: SidecarError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.INTERNAL: Internal,
}
"""For reasons that came after this version."""

_CODE_OF: Final[dict[type[SidecarError], grpc.StatusCode]] = {kind: code for code, kind in _BY_CODE.items()}
_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


def error_from_status(status: status_pb2.Status) -> SidecarError:
    """The error that a google.rpc.Status says: of a call, of an item of a batch or of a lane."""
    info, retry_after_s, violations = None, None, list[tuple[str, str]]()
    for detail in status.details:
        found, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
        try:
            if detail.Unpack(found):
                info = found
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
            elif detail.Unpack(bad):
                violations = [(each.field, each.description) for each in bad.field_violations]
        except DecodeError:
            continue  # a detail that somebody on the way broke says nothing
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    if info is None or info.domain != DOMAIN:
        return TransportError(code, "", status.message, retry_after_s=retry_after_s)
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, SidecarError)
    return kind(
        code,
        info.reason,
        status.message,
        retry_after_s=retry_after_s,
        incident_id=info.metadata.get("incident_id", ""),
        violations=tuple(violations),
    )


def error_from_call(error: grpc.RpcError) -> SidecarError:
    """The error that a failed call of grpc or grpc.aio says."""
    call: Any = error
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # a proxy's status beside the sidecar's details: believe neither
        status = None
    if status is not None:
        return error_from_status(status)
    return TransportError(call.code(), "", call.details() or "")


def error_from_reason(reason: str, message: str) -> SidecarError:
    """The error that an `error` frame of the WebSocket protocol says."""
    kind = _BY_REASON.get(reason, SidecarError)
    code = next((_CODE_OF[base] for base in kind.__mro__ if base in _CODE_OF), grpc.StatusCode.UNKNOWN)
    return kind(code, reason, message)


def bad_request(field: str, description: str) -> BadRequest:
    """What the sidecar would have answered; said here because it could not even be asked."""
    return BadRequest(
        grpc.StatusCode.INVALID_ARGUMENT,
        "BAD_REQUEST",
        "the request is not valid",
        violations=((field, description),),
    )
