/** The frames of `sidecar.v1.json`: read by exact rules, and written. Pure. */

import { badRequest } from "./errors.js";
import type { Limits, Message, StreamChunk } from "./types.js";

/** The other side broke the protocol. The socket is of no more use; a further one may be. */
export class ProtocolError extends Error {}

export interface Welcome {
  readonly type: "welcome";
  readonly connection_id: string;
  readonly isolation_key: string;
  readonly context_token: string;
  readonly context_token_expires_at: number;
  readonly resume_token: string;
  readonly recovery: string;
  readonly sequence: number;
  readonly limits: Limits;
}

interface MessageFrame {
  readonly type: "message";
  readonly sequence: number;
  readonly id: string;
  readonly event?: string;
  readonly content_type: "json" | "text" | "binary";
  readonly data: unknown;
  readonly critical?: boolean;
  readonly reply_to?: string;
  readonly stream?: StreamChunk;
  readonly headers?: Record<string, string>;
}

export type Frame =
  | Welcome
  | MessageFrame
  | { readonly type: "gap"; readonly from: number; readonly to: number; readonly reason: string }
  | { readonly type: "accepted"; readonly id: string; readonly duplicate?: boolean }
  | { readonly type: "error"; readonly id?: string; readonly reason: string; readonly message?: string }
  | { readonly type: "context_token"; readonly context_token: string; readonly expires_at: number }
  | { readonly type: "token_expiring" | "refreshed"; readonly expires_at: number }
  | { readonly type: "draining"; readonly reconnect_in_ms: number };

type Members = Record<string, unknown>;

// What is relied upon: texts, then integers, then texts that may be absent. Unknown members and types are ignored, so that
// a later sidecar may say more.
const SHAPES: Record<string, readonly [string, string, string]> = {
  welcome: [
    "connection_id isolation_key context_token resume_token recovery",
    "context_token_expires_at sequence",
    "",
  ],
  message: ["id content_type", "sequence", "event reply_to"],
  stream: ["id state", "index", ""],
  limits: ["", "max_message_bytes max_inbound_bytes", ""],
  gap: ["reason", "from to", ""],
  accepted: ["id", "", ""],
  error: ["reason", "", "id message"],
  context_token: ["context_token", "expires_at", ""],
  token_expiring: ["", "expires_at", ""],
  refreshed: ["", "expires_at", ""],
  draining: ["", "reconnect_in_ms", ""],
};

const isText = (value: unknown): boolean => typeof value === "string";
const isInteger = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;

function check(value: unknown, kind: string): void {
  const members = value as Members;
  const all = (names: string | undefined, holds: (value: unknown) => boolean): boolean =>
    !names || names.split(" ").every((name) => holds(members[name]));
  const [texts, integers, maybe] = SHAPES[kind] ?? [];
  if (
    !all(texts, isText) ||
    !all(integers, isInteger) ||
    !all(maybe, (value) => value === undefined || isText(value))
  ) {
    throw new ProtocolError();
  }
}

/** The frame; undefined for a type that came after this version. Throws for what is none: ProtocolError, SyntaxError. */
export function parse(data: unknown): Frame | undefined {
  const frame = JSON.parse(data as string) as Members;
  const type = frame["type"];
  if (!isText(type)) throw new ProtocolError();
  if (!Object.hasOwn(SHAPES, type as string)) return undefined;
  check(frame, type as string);
  if (type === "welcome") check(frame["limits"], "limits");
  if (frame["stream"] !== undefined) check(frame["stream"], "stream");
  return frame as unknown as Frame;
}

/** The message as it is handed out. Throws for data that is not what it says. */
export function messageOf(frame: MessageFrame, connectionId: string): Message {
  const { content_type: contentType } = frame;
  let { data } = frame;
  if (data === undefined) throw new ProtocolError();
  if (contentType !== "json") {
    if (!isText(data)) throw new ProtocolError();
    if (contentType === "binary") data = Uint8Array.from(atob(data as string), (character) => character.charCodeAt(0));
  }
  return {
    kind: "message",
    sequence: frame.sequence,
    id: frame.id,
    event: frame.event ?? "",
    contentType,
    data,
    critical: frame.critical === true,
    replyTo: frame.reply_to ?? "",
    stream: frame.stream,
    headers: frame.headers ?? {},
    connectionId,
  };
}

// What this side says

const MAX_DEPTH = 32;

/** A message to the agents. Throws BAD_REQUEST for what the sidecar would refuse, or end the socket for. */
export function messageText(id: string, event: string | undefined, data: unknown): string {
  identifier(id);
  if (event !== undefined) identifier(event);
  let frame = "";
  try {
    frame = JSON.stringify({ type: "message", id, event, data });
  } catch {
    // A cycle, or a BigInt.
  }
  if (!frame.includes('"data":')) throw badRequest("data is no JSON");
  // JSON.stringify writes a lone surrogate, and nothing else of these, as \ud8.. behind an even run of backslashes.
  if (/[^\\](\\\\)*\\ud/.test(frame)) throw badRequest("data has a lone surrogate");
  // Nothing but brackets, and of those the innermost away at each level.
  let brackets = frame.replace(/"(\\.|[^"\\])*"|[^[\]{}]/g, "");
  for (let level = 0; level < MAX_DEPTH; level++) brackets = brackets.replace(/\[\]|{}/g, "");
  if (brackets) throw badRequest("data is nested too deep");
  return frame;
}

/** A stream, or the answer to a message of one's own, that is no longer wanted. */
export function cancelText(what: { id?: string | undefined; streamId?: string | undefined }): string {
  const named = { id: what.id, stream_id: what.streamId };
  const values = Object.values(named).filter((value) => value !== undefined);
  if (!values.length) throw badRequest("name a stream or a message");
  values.forEach(identifier);
  return JSON.stringify({ type: "cancel", ...named });
}

function identifier(value: string): void {
  if (!/^[\w.:@|-]{1,128}$/.test(value)) throw badRequest("ids and events are 1 to 128 of A-Z a-z 0-9 _ . : @ | -");
}
