/** Response streams: which message is whose, and where an answer ends. */

import { StreamFailed } from "./errors.js";
import { Reader } from "./reader.js";
import type { Hooks } from "./reader.js";
import type { Event, Message } from "./types.js";

/** How many answers that nobody wants any more are remembered, so that what still comes of them is let go. */
const MAX_FORGOTTEN = 256;
/** Behind a gap an answer that says nothing for so long has lost its end: the sidecar ends a silent stream before. */
const SILENCE_MS = 130_000;

export interface ReplyPorts {
  /** Say that it is not wanted any more. */
  cancel(reply: Reply): void;
  later(action: () => void, ms: number): () => void;
}

/**
 * One answer: its messages in order, each once, over cuts. Ends with the stream's end, or with the one message where the
 * service answers without a stream; throws StreamFailed, or the refusal of the question. Leaving it cancels.
 */
export interface ReplyStream extends AsyncIterableIterator<Message> {
  /** The id of the message that is answered; "" for a stream that answers none. */
  readonly replyTo: string;
  /** The stream's id; "" before its first part. */
  readonly streamId: string;
  /** No more of it: what still comes is let go. Idempotent. */
  cancel(): void;
}

export class Reply extends Reader<Message> implements ReplyStream {
  streamId = "";
  readonly #ports: ReplyPorts;
  readonly #session: Hooks<Event>;
  readonly #over: (cancelled: boolean) => void;
  #next: number | undefined;
  #forget: (() => void) | undefined;

  constructor(
    readonly replyTo: string,
    session: Hooks<Event>,
    ports: ReplyPorts,
    over: (reply: Reply, cancelled: boolean) => void,
    signal?: AbortSignal,
  ) {
    super(session);
    this.#session = session;
    this.#ports = ports;
    const abort = (): void => {
      this.fail(signal?.reason, true);
    };
    signal?.addEventListener("abort", abort);
    this.#over = (cancelled): void => {
      signal?.removeEventListener("abort", abort);
      over(this, cancelled);
    };
  }

  take(message: Message): void {
    this.#forget?.();
    const { stream, data } = message;
    const state = stream?.state ?? "end";
    const hole = stream && this.#next !== undefined && stream.index !== this.#next;
    this.#next = stream && stream.index + 1;
    // A last part may say nothing; a single message says what it says.
    if (hole || state === "error" || (stream && state === "end" && data === null)) this.#session.letGo(message);
    else this.push(message);
    if (hole) this.fail(new StreamFailed("GAP"), true);
    else if (state === "error") this.fail(new StreamFailed("STREAM_FAILED", data));
    else if (state === "end") this.fail();
  }

  /** A gap came: this answer may have lost a part. If the next part is the next one, it has not. */
  doubt(): void {
    this.#forget?.();
    this.#forget = this.#ports.later(() => {
      this.fail(new StreamFailed("GAP"), true);
    }, SILENCE_MS);
  }

  /** It ends here, by an error or in order; `cancelled`: though more of it may come. */
  fail(error?: unknown, cancelled = false): void {
    if (this.ended) return;
    this.#forget?.();
    this.end(error);
    this.#over(cancelled);
    if (cancelled) this.#ports.cancel(this);
  }

  cancel(): void {
    void this.return();
  }

  override return(): Promise<IteratorResult<Message>> {
    this.fail(undefined, true);
    return super.return();
  }
}

const ARRIVALS: Hooks<ReplyStream> = {
  handed: () => undefined,
  done: () => undefined,
  letGo: (reply) => {
    reply.cancel();
  },
};

/** The answers that somebody reads, by what they answer and by their stream. */
export class Replies {
  // null: nobody wants it any more.
  readonly #claims = new Map<string, Reply | null>();
  #arrivals: Reader<ReplyStream> | undefined;

  readonly #session: Hooks<Event>;
  readonly #ports: ReplyPorts;

  constructor(session: Hooks<Event>, ports: ReplyPorts) {
    this.#session = session;
    this.#ports = ports;
  }

  /** The answer to the message of that id, whether it is sent yet or not. */
  expect(replyTo: string, signal?: AbortSignal): Reply {
    this.#claims.get(`r${replyTo}`)?.fail(new StreamFailed("REPLACED"));
    const reply = this.#reply(replyTo, signal);
    this.#claims.set(`r${replyTo}`, reply);
    return reply;
  }

  /** The streams that no `expect` takes, as they arrive. Left, what arrives from then on is the connection's again. */
  get arrivals(): Reader<ReplyStream> {
    if (!this.#arrivals || this.#arrivals.ended) this.#arrivals = new Reader(ARRIVALS);
    return this.#arrivals;
  }

  /** False: it is nobody's here. */
  take(message: Message): boolean {
    const { stream } = message;
    const key = `s${stream?.id ?? ""}`;
    let reply = stream && this.#claims.get(key);
    if (reply === undefined && message.replyTo) {
      reply = this.#claims.get(`r${message.replyTo}`);
      // A second stream beside the one that is read; a message beside it is none of its parts either.
      if (reply?.streamId) reply = undefined;
    }
    if (reply === null) this.#session.letGo(message);
    if (reply === null && stream && stream.state !== "open") this.#claims.delete(key);
    if (reply === undefined && stream && this.#arrivals?.ended === false) {
      reply = this.#reply(message.replyTo);
      this.#arrivals.push(reply);
    }
    if (reply && stream && !reply.streamId) {
      reply.streamId = stream.id;
      this.#claims.set(key, reply);
    }
    reply?.take(message);
    return reply !== undefined;
  }

  doubt(): void {
    for (const reply of this.#open()) reply.doubt();
  }

  /** They will not come any more, but for those that are still to be asked. */
  fail(error: unknown, but: (replyTo: string) => boolean = () => false): void {
    for (const reply of this.#open()) if (!but(reply.replyTo)) reply.fail(error);
  }

  /** No stream arrives any more. */
  end(error?: unknown): void {
    this.#arrivals?.end(error);
  }

  #open(): Set<Reply> {
    return new Set([...this.#claims.values()].filter((reply) => reply !== null));
  }

  #reply(replyTo: string, signal?: AbortSignal): Reply {
    const over = (reply: Reply, cancelled: boolean): void => {
      for (const key of [`r${reply.replyTo}`, `s${reply.streamId}`]) {
        if (this.#claims.get(key) === reply) this.#claims.delete(key);
        if (cancelled && key.length > 1) this.#claims.set(key, null);
      }
      const forgotten = [...this.#claims].filter(([, open]) => open === null);
      for (const [key] of forgotten.slice(0, -MAX_FORGOTTEN)) this.#claims.delete(key);
    };
    return new Reply(replyTo, this.#session, this.#ports, over, signal);
  }
}
