/** What the runner's protocol says in JSON, as the client's values and back. */

import { SidecarError } from "../src/index.js";
import type { InboundMessage, OutgoingMessage, Receipt, StreamState, Target, UserContext } from "../src/index.js";

/** Members of a command or an answer. */
export type Values = Record<string, unknown>;

/** A command's members, as the protocol says them: the driver is not checked. */
export interface MessageValues {
  readonly json?: unknown;
  readonly text?: string;
  readonly binary?: string;
  readonly event_type?: string;
  readonly message_id?: string;
  readonly ttl_s?: number;
  readonly headers?: Record<string, string>;
  readonly critical?: boolean;
  readonly reply_to?: string;
  readonly min_durability?: "MEMORY" | "DISK" | "REPLICATED";
  readonly stream?: { readonly stream_id: string; readonly index: number; readonly state: StreamState };
}

export interface TargetValues {
  readonly isolation_key: string;
  readonly context_token: string;
  readonly expected_user_id?: string;
}

export function targetFrom(said: TargetValues): Target {
  return {
    isolationKey: said.isolation_key,
    contextToken: said.context_token,
    expectedUserId: said.expected_user_id,
  };
}

export function messageFrom(said: MessageValues): OutgoingMessage {
  return {
    ...contentFrom(said),
    eventType: said.event_type,
    messageId: said.message_id,
    ttlS: said.ttl_s,
    headers: said.headers,
    critical: said.critical,
    replyTo: said.reply_to,
    minDurability: said.min_durability,
    stream: said.stream && { streamId: said.stream.stream_id, index: said.stream.index, state: said.stream.state },
  };
}

export function contentFrom(said: MessageValues): { json: unknown } | { text: string } | { binary: Uint8Array } {
  if (said.text !== undefined) return { text: said.text };
  if (said.binary !== undefined) return { binary: Buffer.from(said.binary, "base64") };
  return { json: said.json };
}

export function receipt(came: Receipt): Values {
  return {
    message_id: came.messageId,
    sequence: came.sequence,
    state: came.state,
    durability: came.durability,
    connections: came.connections,
    duplicate: came.duplicate,
    accepted_time: came.acceptedTime,
  };
}

export function result(came: Receipt | SidecarError): Values {
  return came instanceof SidecarError ? { error: error(came) } : { receipt: receipt(came) };
}

export function user(context: UserContext): Values {
  return {
    tenant_id: context.tenantId,
    user_id: context.userId,
    session_id: context.sessionId,
    connection_id: context.connectionId,
    request_id: context.requestId,
    created_time: context.createdTime,
    permissions: context.permissions,
    metadata: context.metadata,
  };
}

export function inbound(message: InboundMessage): Values {
  const { contentType, payload } = message;
  return {
    id: message.id,
    event: message.event,
    content_type: contentType,
    data: contentType === "binary" ? Buffer.from(payload).toString("base64") : message.data,
    redelivered: message.redelivered,
  };
}

export function error(failed: SidecarError): Values {
  const retry = failed.retryAfterS === undefined ? {} : { retry_after_s: failed.retryAfterS };
  return { code: failed.code, reason: failed.reason, definite: failed.definite, ...retry };
}
