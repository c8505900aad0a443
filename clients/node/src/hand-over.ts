/** Events for one reader, instead of handlers: each is handled when the next is asked for. */

import type { AgentEvent } from "./agent-events.js";
import { Deque } from "./deque.js";

interface Waiting {
  readonly event: AgentEvent;
  readonly signal: AbortSignal;
  readonly handled: () => void;
}

/** A handler that waits until a reader has taken its event and come back for more. */
export class HandOver {
  readonly #waiting = new Deque<Waiting>();
  #taken: Waiting | undefined;
  #wake: (() => void) | undefined;

  /** Resolves when the event is dealt with, or passed over because it is not to be handled any more. */
  handle(event: AgentEvent, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      signal.addEventListener("abort", () => {
        reject(signal.reason as Error);
      });
      this.#waiting.push({ event, signal, handled: resolve });
      this.wake();
    });
  }

  /** No further event may come. */
  wake(): void {
    this.#wake?.();
    this.#wake = undefined;
  }

  /** The next event; the one before is dealt with. Undefined when `over` says that no more will come. */
  async next(over: () => boolean): Promise<AgentEvent | undefined> {
    this.#taken?.handled();
    this.#taken = undefined;
    for (;;) {
      const next = this.#waiting.shift();
      if (next !== undefined && !next.signal.aborted) {
        this.#taken = next;
        return next.event;
      }
      if (next !== undefined) continue;
      if (over()) return undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}
