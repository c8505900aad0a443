/**
 * What callers hand over and are given: plain values with the contract's words, no protobuf. Times are seconds, times of
 * day Unix seconds, sizes bytes.
 */

/** How a payload is to be read: exactly one RFC 8259 value, UTF-8 text, or any bytes. */
export type ContentType = "json" | "text" | "binary";

/**
 * How far a message has come when the answer is made: `QUEUED` not yet written; `WRITTEN` given to the live primary
 * socket's transport, no more than that; `ACKNOWLEDGED` the client said so; `DROPPED` expired unwritten, or announced to
 * the client as part of a gap.
 */
export type DeliveryState = "QUEUED" | "WRITTEN" | "ACKNOWLEDGED" | "DROPPED";

/** What an accepted message survives: nothing, a crash of the sidecar, the loss of any one node of the cluster. */
export type Durability = "MEMORY" | "DISK" | "REPLICATED";

/** Where a chunk stands in its response stream: before the last, the last, or the last of one that failed. */
export type StreamState = "open" | "end" | "error";

/** Whom a broadcast reaches: every context of the token's own user, or of its tenant. */
export type BroadcastScope = "user" | "tenant";

/** What an OK says about a message. */
export interface Receipt {
  readonly messageId: string;
  /** The message's place in the order of its connection context: from 1, without holes. */
  readonly sequence: number;
  readonly state: DeliveryState;
  readonly durability: Durability;
  /** How many sockets were given the message before the answer was made. */
  readonly connections: number;
  /** It had been accepted before: the first receipt but for the state, and nothing was delivered now. */
  readonly duplicate: boolean;
  /** Unix seconds of the sidecar's clock. */
  readonly acceptedTime: number;
}

/** A message's place in a response stream. */
export interface StreamPlace {
  readonly streamId: string;
  /** 0 for the first chunk, then rising by one. */
  readonly index: number;
  /** Default: `open`. */
  readonly state?: StreamState | undefined;
}

/** Who a connection context belongs to. */
export interface UserContext {
  readonly tenantId: string;
  readonly userId: string;
  readonly sessionId: string;
  readonly connectionId: string;
  readonly requestId: string;
  /** Unix seconds. */
  readonly createdTime: number;
  readonly permissions: readonly string[];
  readonly metadata: Readonly<Record<string, string>>;
}

/** A context token. It is a secret: neither printed nor written as JSON; read `text`. */
export class ContextToken {
  readonly #text: string;
  /** Unix seconds. */
  readonly expireTime: number;

  constructor(text: string, expireTime: number) {
    this.#text = text;
    this.expireTime = expireTime;
  }

  /** The token itself. */
  get text(): string {
    return this.#text;
  }
}

/** What an exchange gives: the token, the isolation key that it opens, and whose it is. */
export interface ContextGrant {
  readonly isolationKey: string;
  readonly token: ContextToken;
  readonly context: UserContext;
}

/** What a context token opens. */
export interface ContextFacts {
  readonly isolationKey: string;
  readonly context: UserContext;
  readonly scopes: readonly string[];
  /** Unix seconds. */
  readonly expireTime: number;
}

/** How far a broadcast came. */
export interface BroadcastResult {
  /** Managers that took the message, or had before. */
  readonly managers: number;
  /** Sockets that were given it. */
  readonly connections: number;
  /** Managers that refused it. */
  readonly refused: number;
}

/** The counters of one manager. */
export interface ManagerStats {
  readonly connectionsManaged: number;
  readonly messagesSentTotal: number;
  readonly messagesFailedTotal: number;
  /** Unix seconds. */
  readonly lastActivityTime: number;
  readonly managerAgeSeconds: number;
  readonly cleanupScheduled: boolean;
  readonly outboxMessages: number;
  readonly outboxBytes: number;
}

/** Where a message goes: a connection context, and the token that opens it. */
export interface Target {
  readonly isolationKey: string;
  /** A secret. */
  readonly contextToken: string;
  /**
   * The user that the caller means, from its own authentication of whatever it answers; another than the token's is
   * ISOLATION_VIOLATION. Default: not checked.
   */
  readonly expectedUserId?: string | undefined;
}

/** What one call may be told. */
export interface CallOptions {
  /** The deadline over all tries, in seconds. Default: the client's. */
  readonly timeoutS?: number | undefined;
  /** Gives the call up: it rejects with the signal's reason. What was written may have been taken all the same. */
  readonly signal?: AbortSignal | undefined;
}

/** What one call that sends a message may be told. */
export interface SendOptions extends CallOptions {
  /**
   * Hold the answer until the client has acknowledged the message, it was dropped, or that long, at most 60 s; then OK
   * with the state as it is. The deadline is later by as much.
   */
  readonly waitForAckS?: number | undefined;
}
