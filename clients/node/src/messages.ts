/** What a caller says of a message, and the protobuf message that it becomes. */

import { randomFillSync } from "node:crypto";
import { BinaryWriter } from "@bufbuild/protobuf/wire";
import { badRequest, errorFromReason } from "./error-catalogue.js";
import type { Duration } from "./generated/google/protobuf/duration.js";
import * as pb from "./generated/sidecar/api/v1/types.js";
import type { ContentType, Durability, StreamPlace, StreamState } from "./values.js";

const MAX_TOKEN_CHARACTERS = 4_096;
const MAX_SECONDS = 315_576_000_000; // of a google.protobuf.Duration
const CARRIED = /^(?! )[\x20-\x7e]*(?<! )$/;
const EMPTY = Buffer.alloc(0);

/** What a message says: exactly one of these. */
export type Content =
  | { readonly json: unknown; readonly text?: never; readonly binary?: never; readonly payload?: never }
  | { readonly text: string; readonly json?: never; readonly binary?: never; readonly payload?: never }
  | { readonly binary: Uint8Array; readonly json?: never; readonly text?: never; readonly payload?: never }
  | EncodedContent;

/** Bytes that are encoded already, and how they are to be read. */
export interface EncodedContent {
  readonly payload: Uint8Array;
  /** Default: `json`. */
  readonly contentType?: ContentType | undefined;
  readonly json?: never;
  readonly text?: never;
  readonly binary?: never;
}

/** What else may be said of a message. Identifiers are 1 to 128 of `A-Z a-z 0-9 _ . : @ | -`. */
export interface MessageOptions {
  /** An identifier: what kind of message this is, for the client to dispatch on. */
  readonly eventType?: string | undefined;
  /** An identifier, the idempotency key. Default: made up, so that a call may always be repeated. */
  readonly messageId?: string | undefined;
  /** How long it is kept for a client that is away: more than 0, at most a day. Default: the sidecar's. */
  readonly ttlS?: number | undefined;
  /** Handed to the client beside the payload: at most 32. */
  readonly headers?: Readonly<Record<string, string>> | undefined;
  /** Refuse it (DurabilityUnavailable) unless the store gives at least this. */
  readonly minDurability?: Durability | undefined;
  /** Never dropped for another, kept as long as its manager. Needs the scope `emit`; JSON only. */
  readonly critical?: boolean | undefined;
  /** An identifier: the client's message that this answers. */
  readonly replyTo?: string | undefined;
  /** Its place in a response stream. */
  readonly stream?: StreamPlace | undefined;
}

/**
 * One message: its content, as `json` (any value that JSON.stringify can say), `text`, `binary` or encoded bytes as
 * `payload`, and its options. Bytes are not to be changed before the call has ended.
 */
export type OutgoingMessage = Content & MessageOptions;

const CONTENT_TYPES: Readonly<Record<ContentType, pb.ContentType>> = {
  json: pb.ContentType.CONTENT_TYPE_JSON,
  text: pb.ContentType.CONTENT_TYPE_TEXT,
  binary: pb.ContentType.CONTENT_TYPE_BINARY,
};
const DURABILITIES: Readonly<Record<Durability | "UNSPECIFIED", pb.Durability>> = {
  UNSPECIFIED: pb.Durability.DURABILITY_UNSPECIFIED,
  MEMORY: pb.Durability.DURABILITY_MEMORY,
  DISK: pb.Durability.DURABILITY_DISK,
  REPLICATED: pb.Durability.DURABILITY_REPLICATED,
};
const STREAM_STATES: Readonly<Record<StreamState, pb.StreamState>> = {
  open: pb.StreamState.STREAM_STATE_OPEN,
  end: pb.StreamState.STREAM_STATE_END,
  error: pb.StreamState.STREAM_STATE_ERROR,
};

/**
 * The protobuf message, always with a messageId. Throws TypeError for none or two contents, BadRequest for a value that
 * the field cannot hold.
 */
export function buildMessage(message: OutgoingMessage): pb.Message {
  const [payload, contentType] = encodeContent(message);
  return {
    messageId: text(message.messageId, "message.message_id") || newMessageId(),
    eventType: text(message.eventType, "message.event_type"),
    payload,
    contentType,
    ttl: message.ttlS === undefined ? undefined : duration(message.ttlS, "message.ttl"),
    headers: message.headers === undefined ? {} : headersOf(message.headers),
    minDurability: DURABILITIES[message.minDurability ?? "UNSPECIFIED"],
    critical: message.critical === true,
    replyTo: text(message.replyTo, "message.reply_to"),
    stream: message.stream === undefined ? undefined : placeOf(message.stream),
  };
}

/** Larger ones are rare: what they made the writer grow to is not kept. */
const KEPT_BYTES = 65_536;
let writer = new BinaryWriter();

/** The message's bytes. By one writer for all: making one for each message costs more than the encoding. */
export function encodeMessage(message: pb.Message): Uint8Array {
  const used = writer;
  writer = new BinaryWriter(); // for the next, should this throw
  const bytes = pb.Message.encode(message, used).finish();
  if (bytes.length <= KEPT_BYTES) writer = used;
  return bytes;
}

/** The payload and its type. */
function encodeContent(content: Content): [Buffer, pb.ContentType] {
  const { json, text: words, binary, payload } = content;
  const given = Number(json !== undefined) + Number(words !== undefined) + Number(binary !== undefined);
  if (given + Number(payload !== undefined) !== 1) throw new TypeError("give one of json, text, binary and payload");
  if (words !== undefined) return [utf8(words, "message.payload"), pb.ContentType.CONTENT_TYPE_TEXT];
  if (binary !== undefined) return [bytesOf(binary), pb.ContentType.CONTENT_TYPE_BINARY];
  if (payload !== undefined) return [bytesOf(payload), CONTENT_TYPES[content.contentType ?? "json"]];
  return [encodeJson(json), pb.ContentType.CONTENT_TYPE_JSON];
}

/** One RFC 8259 value in UTF-8, as JSON.stringify says it. Throws BadRequest for what it cannot say. */
export function encodeJson(value: unknown, where = "message.payload"): Buffer {
  let said: string | undefined;
  try {
    said = JSON.stringify(value); // undefined for a function, a symbol and undefined
  } catch {
    said = undefined; // a cycle, a bigint: the error would quote the value's names
  }
  if (said === undefined) throw badRequest(where, "exactly one JSON value");
  return Buffer.from(said);
}

/** The value as the protobuf's bytes, not copied. Empty content is none. */
export function bytesOf(value: Uint8Array): Buffer {
  if (!(value instanceof Uint8Array)) throw new TypeError("binary and payload are a Uint8Array; other values go as json");
  if (value.byteLength === 0) return EMPTY;
  return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
}

/** Seconds as a Duration. Throws BadRequest for what none can hold. */
export function duration(seconds: number, where: string): Duration {
  if (!(Math.abs(seconds) <= MAX_SECONDS)) throw badRequest(where, "a number of seconds");
  const whole = Math.trunc(seconds);
  const nanos = Math.round((seconds - whole) * 1e9);
  return Math.abs(nanos) < 1e9 ? { seconds: whole, nanos } : { seconds: whole + Math.sign(nanos), nanos: 0 };
}

/** A field's text; empty where there is none. Throws BadRequest for what UTF-8 cannot say. */
export function text(value: string | undefined, where: string): string {
  if (value === undefined || value === "") return "";
  if (typeof value !== "string" || !value.isWellFormed()) throw badRequest(where, "a text is UTF-8");
  return value;
}

/**
 * The token, when gRPC can carry it. Throws TokenInvalid as the sidecar would answer, without ever naming the token: a
 * service hands on what a request brought it, and a line break in it must not become an error that quotes it.
 */
export function checkToken(token: string): string {
  if (typeof token !== "string" || token.length > MAX_TOKEN_CHARACTERS || !CARRIED.test(token)) {
    throw errorFromReason("TOKEN_INVALID", "the token is not valid");
  }
  return token;
}

function utf8(value: string, where: string): Buffer {
  if (typeof value !== "string" || !value.isWellFormed()) throw badRequest(where, "UTF-8");
  return value === "" ? EMPTY : Buffer.from(value);
}

function headersOf(headers: Readonly<Record<string, string>>): Record<string, string> {
  for (const [name, value] of Object.entries(headers)) {
    text(name, "message.headers");
    text(value, "message.headers");
  }
  return { ...headers };
}

function placeOf(place: StreamPlace): pb.Stream {
  if (!Number.isSafeInteger(place.index) || place.index < 0) throw badRequest("message.stream.index", "a number from 0");
  const streamId = text(place.streamId, "message.stream.stream_id");
  return { streamId, index: place.index, state: STREAM_STATES[place.state ?? "open"] };
}

const random = Buffer.allocUnsafe(4_096);
let unused = 0;

/** 32 random hexadecimal digits. The randomness of many is drawn at once: drawing it singly costs more than a message. */
export function newMessageId(): string {
  if (unused === 0) {
    randomFillSync(random);
    unused = random.length;
  }
  unused -= 16;
  return random.toString("hex", unused, unused + 16);
}
