/**
 * The errors that a promise or an iterator of this client is rejected with. None of them holds a token or a payload of
 * the caller's. Switch on the class or on `reason`, and expect reasons that this version does not know.
 */

/** Why the sidecar, or this side in its stead, refused. */
export type Reason =
  | "NO_AGENT"
  | "AGENT_BUSY"
  | "MESSAGE_ID_REUSED"
  | "BAD_REQUEST"
  | "RATE_LIMITED"
  | "STORAGE_UNAVAILABLE"
  | "OUTCOME_UNKNOWN"
  | "INTERNAL"
  // Not just string: so an editor still proposes the names above.
  | (string & {});

/** A message was refused, or its fate is not known. */
export class SidecarError extends Error {
  override name = "SidecarError";

  /**
   * `reason`: the catalogue's name, "" where the connection failed. `definite`: true when nothing was changed; where it
   * is false, repeat with the same id or not at all.
   */
  constructor(
    readonly reason: Reason,
    message: string,
    readonly definite: boolean,
  ) {
    super(message || reason);
  }
}

/** No answer of the sidecar's: the deadline passed, the context was replaced, or the connection was left. */
export class TransportError extends SidecarError {
  override name = "TransportError";

  constructor(message: string, definite: boolean) {
    super("", message, definite);
  }
}

/** The connection is over and will not come back. `code`: the close code; `reason`: the close text. */
export class ConnectionEnded extends SidecarError {
  override name = "ConnectionEnded";

  constructor(
    readonly code: number,
    reason: string,
  ) {
    super(reason, `closed with ${code} ${reason}`, false);
  }
}

/**
 * An answer ends without its end. `reason`: STREAM_FAILED, the agent said so, and `data` is what it said of the cause;
 * GAP, a part of it could not be kept; REPLACED, its context has ended.
 */
export class StreamFailed extends SidecarError {
  override name = "StreamFailed";

  constructor(
    reason: "STREAM_FAILED" | "GAP" | "REPLACED",
    readonly data?: unknown,
  ) {
    super(reason, "the answer is not whole", false);
  }
}

/** The caller's message is not one that the sidecar takes; it was not sent. */
export const badRequest = (message: string): SidecarError => new SidecarError("BAD_REQUEST", message, true);
