/** Which class and code a reason has, and how answers of the sidecar become errors. */

import { status as Status } from "@grpc/grpc-js";
import type { Metadata } from "@grpc/grpc-js";
import * as errors from "./errors.js";
import type { Code, ErrorClass, ErrorDetails, SidecarError } from "./errors.js";
import type { Any } from "./generated/google/protobuf/any.js";
import { BadRequest, ErrorInfo, RetryInfo } from "./generated/google/rpc/error_details.js";
import { Status as RpcStatus } from "./generated/google/rpc/status.js";

const DOMAIN = "sidecar";
const DETAILS_KEY = "grpc-status-details-bin";

const BY_REASON: ReadonlyMap<string, readonly [ErrorClass, Code]> = new Map<string, readonly [ErrorClass, Code]>([
  ["TOKEN_MISSING", [errors.TokenMissing, "UNAUTHENTICATED"]],
  ["TOKEN_INVALID", [errors.TokenInvalid, "UNAUTHENTICATED"]],
  ["TOKEN_EXPIRED", [errors.TokenExpired, "UNAUTHENTICATED"]],
  ["TOKEN_REVOKED", [errors.TokenRevoked, "UNAUTHENTICATED"]],
  ["ISOLATION_VIOLATION", [errors.IsolationViolation, "PERMISSION_DENIED"]],
  ["SCOPE_MISSING", [errors.ScopeMissing, "PERMISSION_DENIED"]],
  ["SERVICE_DENIED", [errors.ServiceDenied, "PERMISSION_DENIED"]],
  ["MANAGER_GONE", [errors.ManagerGone, "NOT_FOUND"]],
  ["OUTBOX_FULL", [errors.OutboxFull, "RESOURCE_EXHAUSTED"]],
  ["USER_LIMIT", [errors.UserLimit, "RESOURCE_EXHAUSTED"]],
  ["RATE_LIMITED", [errors.RateLimited, "RESOURCE_EXHAUSTED"]],
  ["MESSAGE_ID_REUSED", [errors.MessageIdReused, "ALREADY_EXISTS"]],
  ["SUBSCRIPTION_TAKEN", [errors.SubscriptionTaken, "ALREADY_EXISTS"]],
  ["BAD_REQUEST", [errors.BadRequest, "INVALID_ARGUMENT"]],
  ["DURABILITY_UNAVAILABLE", [errors.DurabilityUnavailable, "FAILED_PRECONDITION"]],
  ["STREAM_CANCELLED", [errors.StreamCancelled, "FAILED_PRECONDITION"]],
  ["STREAM_ENDED", [errors.StreamEnded, "FAILED_PRECONDITION"]],
  ["STREAM_OUT_OF_ORDER", [errors.StreamOutOfOrder, "FAILED_PRECONDITION"]],
  ["LANE_NOT_OPEN", [errors.LaneNotOpen, "FAILED_PRECONDITION"]],
  ["DRAINING", [errors.Draining, "UNAVAILABLE"]],
  ["CLUSTER_UNAVAILABLE", [errors.ClusterUnavailable, "UNAVAILABLE"]],
  ["STORAGE_UNAVAILABLE", [errors.StorageUnavailable, "UNAVAILABLE"]],
  ["AUDIT_UNAVAILABLE", [errors.AuditUnavailable, "UNAVAILABLE"]],
  ["UNSUPPORTED", [errors.Unsupported, "UNIMPLEMENTED"]],
  ["OUTCOME_UNKNOWN", [errors.OutcomeUnknown, "UNAVAILABLE"]],
  ["INTERNAL", [errors.Internal, "INTERNAL"]],
  ["NO_AGENT", [errors.NoAgent, "UNAVAILABLE"]],
  ["AGENT_BUSY", [errors.AgentBusy, "RESOURCE_EXHAUSTED"]],
]);

/** For reasons that came after this version. */
const BY_CODE: ReadonlyMap<Code, ErrorClass> = new Map<Code, ErrorClass>([
  ["UNAUTHENTICATED", errors.TokenError],
  ["PERMISSION_DENIED", errors.PermissionDenied],
  ["RESOURCE_EXHAUSTED", errors.ResourceExhausted],
  ["ALREADY_EXISTS", errors.AlreadyExists],
  ["INVALID_ARGUMENT", errors.BadRequest],
  ["FAILED_PRECONDITION", errors.FailedPrecondition],
  ["UNAVAILABLE", errors.Unavailable],
  ["UNIMPLEMENTED", errors.Unsupported],
  ["INTERNAL", errors.Internal],
]);

/** How a call ended: what grpc-js says of it, as an error or as a status. */
export interface CallStatus {
  readonly code: number;
  readonly details: string;
  readonly metadata: Metadata;
}

/** The error that a failed call says. */
export function errorFromCall(call: CallStatus): SidecarError {
  const status = detailsOf(call);
  return status === undefined ? new errors.TransportError(codeOf(call.code), "", call.details) : errorFromStatus(status);
}

/** The error that a google.rpc.Status says: of a call, of an item of a batch or of a lane. */
export function errorFromStatus(status: RpcStatus): SidecarError {
  const code = codeOf(status.code);
  let info: ErrorInfo | undefined;
  let details: ErrorDetails = {};
  for (const detail of status.details) {
    const read = readDetail(detail);
    if (read.info !== undefined) info = read.info;
    details = { ...details, ...read.details };
  }
  if (info?.domain !== DOMAIN) {
    return new errors.TransportError(code, "", status.message, { retryAfterS: details.retryAfterS });
  }
  const kind = BY_REASON.get(info.reason)?.[0] ?? BY_CODE.get(code) ?? errors.SidecarError;
  return new kind(code, info.reason, status.message, { ...details, incidentId: info.metadata["incident_id"] });
}

/** The error of a reason that the sidecar has not said itself. */
export function errorFromReason(reason: string, message: string): SidecarError {
  const [kind, code] = BY_REASON.get(reason) ?? [errors.SidecarError, "UNKNOWN" as const];
  return new kind(code, reason, message);
}

/** What the sidecar would have answered; said here because it could not even be asked. */
export function badRequest(field: string, description: string): errors.BadRequest {
  const details = { violations: [{ field, description }] };
  return new errors.BadRequest("INVALID_ARGUMENT", "BAD_REQUEST", "the request is not valid", details);
}

/** What a call is told whose time is up. */
export function deadlinePassed(message = "the deadline passed"): errors.TransportError {
  return new errors.TransportError("DEADLINE_EXCEEDED", "", message);
}

/** The name of a gRPC status; UNKNOWN for a number that is none. */
export function codeOf(code: number): Code {
  return (Status[code] as Code | undefined) ?? "UNKNOWN";
}

/** The sidecar's details, where they are the call's: a proxy's status beside them is believed, and they are not. */
function detailsOf(call: CallStatus): RpcStatus | undefined {
  const [bytes] = call.metadata.get(DETAILS_KEY);
  if (!Buffer.isBuffer(bytes)) return undefined;
  try {
    const status = RpcStatus.decode(bytes);
    return status.code === call.code && status.message === call.details ? status : undefined;
  } catch {
    return undefined; // what somebody on the way broke says nothing
  }
}

function readDetail(detail: Any): { info?: ErrorInfo; details?: ErrorDetails } {
  const type = detail.typeUrl.slice(detail.typeUrl.lastIndexOf("/") + 1);
  try {
    switch (type) {
      case "google.rpc.ErrorInfo":
        return { info: ErrorInfo.decode(detail.value) };
      case "google.rpc.RetryInfo": {
        const delay = RetryInfo.decode(detail.value).retryDelay;
        return { details: { retryAfterS: delay === undefined ? 0 : delay.seconds + delay.nanos / 1e9 } };
      }
      case "google.rpc.BadRequest": {
        const violations = BadRequest.decode(detail.value).fieldViolations;
        return { details: { violations: violations.map(({ field, description }) => ({ field, description })) } };
      }
    }
  } catch {
    return {}; // what somebody on the way broke says nothing
  }
  return {};
}
