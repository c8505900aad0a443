export { Connection, connect } from "./connection.js";
export { ConnectionEnded, SidecarError, StreamFailed, TransportError } from "./errors.js";
export type { Reason } from "./errors.js";
export type { ReplyStream } from "./replies.js";
export type {
  Accepted,
  ConnectOptions,
  Event,
  Gap,
  Limits,
  Message,
  Replaced,
  ResumeState,
  Scope,
  SendOptions,
  State,
  StateDetail,
  StreamChunk,
  Tuning,
  WebSocketConstructor,
} from "./types.js";

/** The version of the protocol's package that this client belongs to. */
export const VERSION = "0.1.0";
