"""The one error tree and the catalogue of reasons that every edge answers with.

Nothing here knows gRPC or WebSocket; each edge maps a `SidecarError` by one table of its own. The tree:

    SidecarError                 reason, status, retry_after_s
    ├── Unauthenticated          fault: TokenFault, for the audit trail only
    ├── PermissionDenied
    │   └── IsolationViolation
    ├── ManagerGone
    ├── ResourceExhausted
    ├── AlreadyExists
    ├── BadRequest               violations: ((field, description), ...)
    ├── FailedPrecondition
    ├── Unavailable
    └── Unsupported
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Status(StrEnum):
    """Canonical status codes (google.rpc.Code) by name."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"


class ErrorReason(StrEnum):
    """Why a request was refused; the values are error_reason.proto's names without their prefix."""

    TOKEN_MISSING = "TOKEN_MISSING"
    TOKEN_INVALID = "TOKEN_INVALID"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    TOKEN_REVOKED = "TOKEN_REVOKED"
    ISOLATION_VIOLATION = "ISOLATION_VIOLATION"
    SCOPE_MISSING = "SCOPE_MISSING"
    SERVICE_DENIED = "SERVICE_DENIED"
    MANAGER_GONE = "MANAGER_GONE"
    OUTBOX_FULL = "OUTBOX_FULL"
    USER_LIMIT = "USER_LIMIT"
    RATE_LIMITED = "RATE_LIMITED"
    MESSAGE_ID_REUSED = "MESSAGE_ID_REUSED"
    SUBSCRIPTION_TAKEN = "SUBSCRIPTION_TAKEN"
    BAD_REQUEST = "BAD_REQUEST"
    DURABILITY_UNAVAILABLE = "DURABILITY_UNAVAILABLE"
    STREAM_CANCELLED = "STREAM_CANCELLED"
    STREAM_ENDED = "STREAM_ENDED"
    STREAM_OUT_OF_ORDER = "STREAM_OUT_OF_ORDER"
    LANE_NOT_OPEN = "LANE_NOT_OPEN"
    DRAINING = "DRAINING"
    CLUSTER_UNAVAILABLE = "CLUSTER_UNAVAILABLE"
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
    AUDIT_UNAVAILABLE = "AUDIT_UNAVAILABLE"
    UNSUPPORTED = "UNSUPPORTED"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    INTERNAL = "INTERNAL"
    NO_AGENT = "NO_AGENT"
    AGENT_BUSY = "AGENT_BUSY"


class TokenFault(StrEnum):
    """What was wrong with a refused token. For the audit trail; a caller is never told."""

    MISSING = "missing"
    TOO_LONG = "too_long"
    MALFORMED = "malformed"
    HEADER = "header"
    ALGORITHM = "algorithm"
    KEY = "key"
    SIGNATURE = "signature"
    TYPE = "type"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    CLAIMS = "claims"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    LIFETIME = "lifetime"
    TENANT = "tenant"
    REVOKED = "revoked"


CATALOGUE: Final[dict[ErrorReason, tuple[Status, str]]] = {
    ErrorReason.TOKEN_MISSING: (Status.UNAUTHENTICATED, "a token is required"),
    ErrorReason.TOKEN_INVALID: (Status.UNAUTHENTICATED, "the token is not valid"),
    ErrorReason.TOKEN_EXPIRED: (Status.UNAUTHENTICATED, "the token has expired"),
    ErrorReason.TOKEN_REVOKED: (Status.UNAUTHENTICATED, "the token has been revoked"),
    ErrorReason.ISOLATION_VIOLATION: (Status.PERMISSION_DENIED, "the token does not open this isolation key"),
    ErrorReason.SCOPE_MISSING: (Status.PERMISSION_DENIED, "the token lacks the scope for this call"),
    ErrorReason.SERVICE_DENIED: (Status.PERMISSION_DENIED, "this service may not make this call"),
    ErrorReason.MANAGER_GONE: (Status.NOT_FOUND, "the connection context has ended"),
    ErrorReason.OUTBOX_FULL: (Status.RESOURCE_EXHAUSTED, "the outbox is full"),
    ErrorReason.USER_LIMIT: (Status.RESOURCE_EXHAUSTED, "a limit of this user is reached"),
    ErrorReason.RATE_LIMITED: (Status.RESOURCE_EXHAUSTED, "too many requests"),
    ErrorReason.MESSAGE_ID_REUSED: (Status.ALREADY_EXISTS, "this message_id was used for another message"),
    ErrorReason.SUBSCRIPTION_TAKEN: (Status.ALREADY_EXISTS, "another service holds this subscription"),
    ErrorReason.BAD_REQUEST: (Status.INVALID_ARGUMENT, "the request is not valid"),
    ErrorReason.DURABILITY_UNAVAILABLE: (Status.FAILED_PRECONDITION, "the durability asked for is not on offer"),
    ErrorReason.STREAM_CANCELLED: (Status.FAILED_PRECONDITION, "the client cancelled this stream"),
    ErrorReason.STREAM_ENDED: (Status.FAILED_PRECONDITION, "this stream has ended"),
    ErrorReason.STREAM_OUT_OF_ORDER: (Status.FAILED_PRECONDITION, "this stream's index is ahead of the next"),
    ErrorReason.LANE_NOT_OPEN: (Status.FAILED_PRECONDITION, "the lane is not open"),
    ErrorReason.DRAINING: (Status.UNAVAILABLE, "the sidecar is draining"),
    ErrorReason.CLUSTER_UNAVAILABLE: (Status.UNAVAILABLE, "the cluster is unreachable"),
    ErrorReason.STORAGE_UNAVAILABLE: (Status.UNAVAILABLE, "the store is unreachable"),
    ErrorReason.AUDIT_UNAVAILABLE: (Status.UNAVAILABLE, "the audit trail is unreachable"),
    ErrorReason.UNSUPPORTED: (Status.UNIMPLEMENTED, "not supported by this version"),
    ErrorReason.OUTCOME_UNKNOWN: (Status.UNAVAILABLE, "the store did not say whether it took the message"),
    ErrorReason.INTERNAL: (Status.INTERNAL, "internal error"),
    ErrorReason.NO_AGENT: (Status.UNAVAILABLE, "no agent takes this message"),
    ErrorReason.AGENT_BUSY: (Status.RESOURCE_EXHAUSTED, "the agent's queue is full"),
}
"""Each reason's canonical status and the fixed text a caller sees."""


class SidecarError(Exception):
    """A refusal with a reason: definite, nothing was changed (but for OUTCOME_UNKNOWN and INTERNAL).

    `retry_after_s` (seconds) is set where a retry helps. The text is the catalogue's, never a caller's value.
    """

    def __init__(self, reason: ErrorReason, *, retry_after_s: float | None = None) -> None:
        self.reason = reason
        self.status, self.text = CATALOGUE[reason]
        self.retry_after_s = retry_after_s
        super().__init__(self.text)


class Unauthenticated(SidecarError):
    """No token, or one that is not good. `fault` goes to the audit trail and nowhere else."""

    def __init__(self, reason: ErrorReason, fault: TokenFault) -> None:
        super().__init__(reason)
        self.fault = fault


class PermissionDenied(SidecarError):
    """A good token that does not open this: SCOPE_MISSING, SERVICE_DENIED, ISOLATION_VIOLATION."""


class IsolationViolation(PermissionDenied):
    """The token's key is not the request's, whether or not that key exists."""

    def __init__(self) -> None:
        super().__init__(ErrorReason.ISOLATION_VIOLATION)


class ManagerGone(SidecarError):
    """The token's own manager has ended."""

    def __init__(self) -> None:
        super().__init__(ErrorReason.MANAGER_GONE)


class ResourceExhausted(SidecarError):
    """A limit is reached: OUTBOX_FULL, USER_LIMIT, RATE_LIMITED."""


class AlreadyExists(SidecarError):
    """MESSAGE_ID_REUSED or SUBSCRIPTION_TAKEN."""


class BadRequest(SidecarError):
    """The request breaks a rule of the contract; `violations` names the fields and the rules."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(ErrorReason.BAD_REQUEST)
        self.violations = ((field, description),)


class FailedPrecondition(SidecarError):
    """DURABILITY_UNAVAILABLE, LANE_NOT_OPEN and the stream reasons."""


class Unavailable(SidecarError):
    """DRAINING, NO_AGENT, OUTCOME_UNKNOWN, STORAGE_, CLUSTER_ or AUDIT_UNAVAILABLE; a retry may help."""

    def __init__(self, reason: ErrorReason, *, retry_after_s: float = 1.0) -> None:
        super().__init__(reason, retry_after_s=retry_after_s)


class Unsupported(SidecarError):
    """In the contract, not served by this version."""

    def __init__(self) -> None:
        super().__init__(ErrorReason.UNSUPPORTED)
