/** One event's handler at work: its signal, the streams that it has open, whether an answer is still wanted. */

import { errorFromReason } from "./error-catalogue.js";

/** A response stream as its handler's end concerns it. */
export interface OpenStream {
  /** The handler has returned: end the stream, unless it is over. */
  finish(): Promise<void>;
  /** The handler has failed: so does the stream, unless it is over. Never rejects. */
  break(): Promise<void>;
}

/** Tells its own handler and no other: that handles nothing but this event. */
export class Answering {
  readonly streams = new Map<string, OpenStream>();
  readonly #controller = new AbortController();
  #cancelled = false;

  /** Aborted when the handler is to end: its client wants no more, or the agent stops. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** The client wants no answer any more. */
  get cancelled(): boolean {
    return this.#cancelled;
  }

  /** The client wants no more. Idempotent. */
  cancel(): void {
    this.#cancelled = true;
    this.#controller.abort(errorFromReason("STREAM_CANCELLED", "the client has cancelled the stream"));
  }

  /** The agent stops. Idempotent. */
  stop(): void {
    this.#controller.abort(new DOMException("the agent stops", "AbortError"));
  }
}
