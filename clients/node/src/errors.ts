/**
 * The one error tree. Switch on the class or on `reason`; expect reasons that this version does not know.
 *
 *     SidecarError                code, reason, message, retryAfterS, incidentId, violations, definite
 *     ├── TransportError          the transport's own failure, without a reason: deadline, lost connection, cancelled
 *     ├── TokenError              TOKEN_MISSING, TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_REVOKED: a class each
 *     ├── PermissionDenied        IsolationViolation, ScopeMissing, ServiceDenied
 *     ├── ManagerGone             the connection context has ended
 *     ├── ResourceExhausted       OutboxFull, UserLimit, RateLimited, AgentBusy
 *     ├── AlreadyExists           MessageIdReused, SubscriptionTaken
 *     ├── BadRequest              violations: [{ field, description }]
 *     ├── FailedPrecondition      DurabilityUnavailable, StreamCancelled, StreamEnded, StreamOutOfOrder, LaneNotOpen
 *     ├── Unavailable             Draining, ClusterUnavailable, StorageUnavailable, AuditUnavailable, OutcomeUnknown, NoAgent
 *     ├── Unsupported             in the contract, not served by this sidecar
 *     └── Internal                incidentId: what the sidecar's log calls it
 */

/** A gRPC status by its name. */
export type Code =
  | "OK"
  | "CANCELLED"
  | "UNKNOWN"
  | "INVALID_ARGUMENT"
  | "DEADLINE_EXCEEDED"
  | "NOT_FOUND"
  | "ALREADY_EXISTS"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED"
  | "FAILED_PRECONDITION"
  | "ABORTED"
  | "OUT_OF_RANGE"
  | "UNIMPLEMENTED"
  | "INTERNAL"
  | "UNAVAILABLE"
  | "DATA_LOSS"
  | "UNAUTHENTICATED";

/** A field at fault and the rule that it breaks. */
export interface Violation {
  readonly field: string;
  readonly description: string;
}

/** What an error says beside its code, reason and message. */
export interface ErrorDetails {
  readonly retryAfterS?: number | undefined;
  readonly incidentId?: string | undefined;
  readonly violations?: readonly Violation[] | undefined;
}

/** The class of an error, for what makes one. */
export type ErrorClass = new (code: Code, reason: string, message: string, details?: ErrorDetails) => SidecarError;

/** A call was refused or failed. */
export class SidecarError extends Error {
  /** The gRPC status' name. */
  readonly code: Code;
  /** The catalogue's name, as in `error_reason.proto` without its prefix; empty where the transport failed. */
  readonly reason: string;
  /** Seconds, where a retry helps. */
  readonly retryAfterS: number | undefined;
  /** What the sidecar's log calls what happened; mostly empty. */
  readonly incidentId: string;
  /** The fields at fault. */
  readonly violations: readonly Violation[];
  #unansweredBefore = false;

  constructor(code: Code, reason: string, message: string, details: ErrorDetails = {}) {
    super(message);
    this.name = new.target.name;
    this.code = code;
    this.reason = reason;
    this.retryAfterS = details.retryAfterS;
    this.incidentId = details.incidentId ?? "";
    this.violations = details.violations ?? [];
  }

  /**
   * True: nothing was changed. False: it may have been; repeat it with the same messageId, or not at all. A refusal speaks
   * of its own try: behind one that had no answer it is not definite either.
   */
  get definite(): boolean {
    return this.tellsAll() && !this.#unansweredBefore;
  }

  /** The same error behind an earlier try that had no answer, or an equal one of its own: each caller gets its own. */
  again(unansweredBefore = this.#unansweredBefore): SidecarError {
    const kind = this.constructor as ErrorClass;
    const error = new kind(this.code, this.reason, this.message, this);
    error.#unansweredBefore = unansweredBefore;
    return error;
  }

  /** Whether an error of this class says that its own try has changed nothing. */
  protected tellsAll(): boolean {
    return true;
  }
}

/** No answer of the sidecar's: a deadline that passed, a connection that broke, a call that was cancelled. */
export class TransportError extends SidecarError {
  protected override tellsAll(): boolean {
    return this.code === "UNIMPLEMENTED";
  }
}

/** The context token (or user token, or service token) is missing, not good, expired or revoked. */
export class TokenError extends SidecarError {}
/** The call needs a token and carries none. */
export class TokenMissing extends TokenError {}
/** The token is malformed, or its signature, type, issuer or audience is not right. */
export class TokenInvalid extends TokenError {}
/** The token has expired: refresh in time, or exchange for a new one. */
export class TokenExpired extends TokenError {}
/** The token, or the family that it belongs to, was revoked. */
export class TokenRevoked extends TokenError {}

/** A good token that does not open this. */
export class PermissionDenied extends SidecarError {}
/** The token's isolation key is not the request's, or expectedUserId is another user. Says nothing of either. */
export class IsolationViolation extends PermissionDenied {}
/** The token lacks the scope that the call needs. */
export class ScopeMissing extends PermissionDenied {}
/** This service may not make this call, or not for this tenant or scope. */
export class ServiceDenied extends PermissionDenied {}

/** The token's connection context has ended. Says nothing of an earlier try. */
export class ManagerGone extends SidecarError {}

/** A limit is reached; `retryAfterS` says when to try again. */
export class ResourceExhausted extends SidecarError {}
/** The context's outbox is full: its client is away or slow. */
export class OutboxFull extends ResourceExhausted {}
/** A limit of the token's own user. */
export class UserLimit extends ResourceExhausted {}
/** Too many calls, messages or attempts for now. */
export class RateLimited extends ResourceExhausted {}
/** The agent service that takes a user's message has no room for it now. */
export class AgentBusy extends ResourceExhausted {}

/** The name is taken. */
export class AlreadyExists extends SidecarError {}
/** The messageId was used for a message with other content. */
export class MessageIdReused extends AlreadyExists {}
/** Another service holds this subscription. */
export class SubscriptionTaken extends AlreadyExists {}

/** A field is missing, over its limit or not what it says; `violations` names it and the rule. */
export class BadRequest extends SidecarError {}

/** The state of things does not allow this. */
export class FailedPrecondition extends SidecarError {}
/** The sidecar's store does not give the durability asked for. */
export class DurabilityUnavailable extends FailedPrecondition {}
/** The client wants no more of this response stream. */
export class StreamCancelled extends FailedPrecondition {}
/** The response stream has had its last chunk. */
export class StreamEnded extends FailedPrecondition {}
/** The chunk's index is ahead of the next. */
export class StreamOutOfOrder extends FailedPrecondition {}
/** The item names a lane that is not open on this stream. */
export class LaneNotOpen extends FailedPrecondition {}

/** Not now; `retryAfterS` says when to try again. */
export class Unavailable extends SidecarError {}
/** The sidecar is about to stop and takes no more of this. */
export class Draining extends Unavailable {}
/** The sidecar cannot reach its cluster. */
export class ClusterUnavailable extends Unavailable {}
/** The sidecar cannot reach its store. */
export class StorageUnavailable extends Unavailable {}
/** The audit trail cannot be written, and this call needs its record first. */
export class AuditUnavailable extends Unavailable {}
/** The store did not say whether it took the message. Not definite. */
export class OutcomeUnknown extends Unavailable {
  protected override tellsAll(): boolean {
    return false;
  }
}
/** No agent service takes a user's message. */
export class NoAgent extends Unavailable {}

/** In the contract, but not served by this sidecar. */
export class Unsupported extends SidecarError {}

/** Something unforeseen in the sidecar; its log knows more under `incidentId`. Not definite. */
export class Internal extends SidecarError {
  protected override tellsAll(): boolean {
    return false;
  }
}
