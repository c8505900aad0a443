/** What an agent is told of connection contexts, in the words of its handlers. */

import type { AgentContext } from "./agent-context.js";
import type { Answering } from "./answering.js";
import { ReplyStream } from "./reply-stream.js";
import type { ReplyOptions } from "./reply-stream.js";
import type { ContentType } from "./values.js";

/** A context was made: its user is connected. */
export interface Opened {
  readonly kind: "opened";
  readonly context: AgentContext;
}

/** The user's connection is lost; it may come back within the resume window. */
export interface Away {
  readonly kind: "away";
  readonly context: AgentContext;
}

/** The user is connected again. */
export interface Back {
  readonly kind: "back";
  readonly context: AgentContext;
}

/** The context has ended: nothing can be sent any more. */
export interface Closed {
  readonly kind: "closed";
  readonly context: AgentContext;
  /** The WebSocket close code; 0 where there was no socket to close. */
  readonly code: number;
  /** The catalogue's name of the code, or what else ended it. */
  readonly reason: string;
}

/** What a message is made of. */
export interface MessageParts {
  readonly id: string;
  readonly event: string;
  readonly payload: Uint8Array;
  readonly contentType: ContentType;
  readonly redelivered: boolean;
}

/** A message of the user's. */
export class InboundMessage {
  readonly kind = "message";
  readonly context: AgentContext;
  /** The client's own id; empty for raw clients. */
  readonly id: string;
  /** What kind of message it is: `message` where the client named none. */
  readonly event: string;
  readonly payload: Uint8Array;
  readonly contentType: ContentType;
  /** It may have been handled before, by another process. */
  readonly redelivered: boolean;
  readonly #answering: Answering;

  /** @internal */
  constructor(context: AgentContext, parts: MessageParts, answering: Answering) {
    this.context = context;
    this.id = parts.id;
    this.event = parts.event;
    this.payload = parts.payload;
    this.contentType = parts.contentType;
    this.redelivered = parts.redelivered;
    this.#answering = answering;
  }

  /** The JSON value, a string for text, bytes for binary. Throws SyntaxError for what is no JSON. */
  get data(): unknown {
    if (this.contentType === "binary") return this.payload;
    const said = new TextDecoder().decode(this.payload);
    return this.contentType === "json" ? (JSON.parse(said) as unknown) : said;
  }

  /** Whether the client has said that it wants no answer any more. */
  get cancelled(): boolean {
    return this.#answering.cancelled;
  }

  /** Aborted when the handler is to end: the client wants no more (`cancelled`), or the agent stops. */
  get signal(): AbortSignal {
    return this.#answering.signal;
  }

  /** A response stream. It ends when the handler returns, and fails where that throws. */
  reply(options: ReplyOptions = {}): ReplyStream {
    return new ReplyStream(this.context, this.#answering, this.id, options);
  }
}

/** What an agent is told. */
export type AgentEvent = Opened | Away | Back | Closed | InboundMessage;
