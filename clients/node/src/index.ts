/**
 * The Node client of ws-sidecar, for an agent service and for any service that sends to users.
 *
 * An agent service takes users' messages and answers them with `Agent`; any service sends to users with `SidecarClient`.
 * Errors are one tree under `SidecarError`.
 *
 * @packageDocumentation
 */

export { Agent } from "./agent.js";
export type { AgentOptions, ClosedHandler, ContextHandler, MessageHandler } from "./agent.js";
export type { AgentContext } from "./agent-context.js";
export type { AgentEvent, Away, Back, Closed, InboundMessage, Opened } from "./agent-events.js";
export type { Subscription } from "./agent-stream.js";
export type { Uniform } from "./back-off.js";
export type { BatchItem, CriticalEvent } from "./calls.js";
export { SidecarClient } from "./client.js";
export type { CloseOptions } from "./client.js";
export * from "./errors.js";
export type { Logger } from "./logger.js";
export type { Content, EncodedContent, MessageOptions, OutgoingMessage } from "./messages.js";
export type { Chunk, ReplyOptions, ReplyStream } from "./reply-stream.js";
export type { Sender, SenderOptions } from "./sender.js";
export type { StreamCancellation } from "./sender-core.js";
export type { SenderLimits } from "./sender-limits.js";
export type { ClientOptions, TlsOptions } from "./settings.js";
export { ContextToken } from "./values.js";
export type {
  BroadcastResult,
  BroadcastScope,
  CallOptions,
  ContentType,
  ContextFacts,
  ContextGrant,
  DeliveryState,
  Durability,
  ManagerStats,
  Receipt,
  SendOptions,
  StreamPlace,
  StreamState,
  Target,
  UserContext,
} from "./values.js";
export { VERSION } from "./version.js";
