/**
 * Who handles what, when: the events of one context one after the other, different contexts side by side.
 *
 * What waits for its context holds no place that another context could have: a user who asks much holds up nobody else.
 * It stays the sidecar's until it is begun, or has waited for long: another worker has it when this one stops or is lost, and
 * the sidecar's own bound tells a client that asks too much (AGENT_BUSY).
 */

import type { AgentEvent } from "./agent-events.js";
import type { Answering } from "./answering.js";
import { ManagerGone, StreamCancelled } from "./errors.js";
import type { Logger } from "./logger.js";

/** How long handlers may take to end once they are told to, in seconds. */
const CANCEL_TIMEOUT_S = 10;

/** One event, from its receipt to the end of its handler. */
export class Handling {
  readonly event: AgentEvent;
  readonly answering: Answering;
  readonly deliveryId: string;
  #acknowledged = false;
  #waiting: NodeJS.Timeout | undefined;

  constructor(event: AgentEvent, answering: Answering, deliveryId: string) {
    this.event = event;
    this.answering = answering;
    this.deliveryId = deliveryId;
  }

  get key(): string {
    return this.event.context.isolationKey;
  }

  get acknowledged(): boolean {
    return this.#acknowledged;
  }

  /** The event is this process's. Whether that is news. */
  own(): boolean {
    this.stopWaiting();
    const news = !this.#acknowledged;
    this.#acknowledged = true;
    return news;
  }

  /** For its turn; `enough` is called when that is too long. The timer holds no process. */
  wait(seconds: number, enough: () => void): void {
    if (this.#acknowledged) return;
    this.#waiting ??= setTimeout(enough, seconds * 1_000).unref();
  }

  /** Its turn has come, or will not. */
  stopWaiting(): void {
    clearTimeout(this.#waiting);
  }
}

/** Calls the handler of an event; its promise is the handler's. */
export type Handle = (event: AgentEvent, signal: AbortSignal) => Promise<void>;

/** What a dispatcher works with. */
export interface DispatcherParts {
  readonly handle: Handle;
  /** Called for each event received, when another may be in its place. */
  readonly onRoom: () => void;
  /** Called for each event, by its delivery id, when its handler begins or it has waited for `patienceS`. */
  readonly acknowledge: (deliveryId: string) => void;
  readonly patienceS: number;
  /** An event is not acknowledged when it begins, but when `begun` says that its reader has it. */
  readonly read?: boolean;
  readonly logger: Logger;
}

/** Runs the handlers of one agent. */
export class Dispatcher {
  readonly #parts: DispatcherParts;
  /** By context, where one of it is running. */
  readonly #waiting = new Map<string, Handling[]>();
  readonly #running = new Map<string, Handling>();
  readonly #whenIdle: (() => void)[] = [];
  readonly #enough = new AbortController();
  #stopping = false;

  constructor(parts: DispatcherParts) {
    this.#parts = parts;
  }

  /** How many contexts have a handler running. */
  get size(): number {
    return this.#running.size;
  }

  /** Handle it when those of its context before it have been. */
  receive(handling: Handling): void {
    if (handling.event.kind === "closed") this.#leaveUnanswered(handling.key);
    if (!this.#running.has(handling.key)) {
      this.#start(handling);
      return;
    }
    this.#wait(handling);
    const waiting = this.#waiting.get(handling.key) ?? [];
    this.#waiting.set(handling.key, waiting);
    waiting.push(handling);
    this.#parts.onRoom();
  }

  /** The client wants no more of a stream, or of the answer to a message. */
  cancel(isolationKey: string, streamId: string, messageId: string): void {
    for (const { event, answering } of this.#ofContext(isolationKey)) {
      const named = event.kind === "message" && messageId !== "" && event.id === messageId;
      if (named || answering.streams.has(streamId)) answering.cancel();
    }
  }

  /** The reader has it. */
  begun(event: AgentEvent): void {
    const handling = this.#running.get(event.context.isolationKey);
    if (handling?.event === event) this.#own(handling);
  }

  /** An event that came again is acknowledged: where it waits, it is this process's now. */
  own(isolationKey: string, deliveryId: string): void {
    for (const handling of this.#ofContext(isolationKey)) {
      if (handling.deliveryId === deliveryId) this.#own(handling);
    }
  }

  /** What waits and is not acknowledged comes again, here or elsewhere: it is not begun any more. Returns it. */
  giveBack(): Handling[] {
    const given = [...this.#running.values()].filter(({ acknowledged }) => !acknowledged);
    for (const { answering } of given) answering.stop();
    for (const [key, waiting] of this.#waiting) {
      given.push(...waiting.filter(({ acknowledged }) => !acknowledged));
      this.#waiting.set(key, waiting.filter(({ acknowledged }) => acknowledged));
    }
    for (const handling of given) handling.stopWaiting();
    return given;
  }

  /** Let what was received be handled, at most `graceS` seconds; then tell it to end. Takes no more. */
  async finish(graceS: number): Promise<void> {
    if (!(await this.#idleWithin(graceS, this.#enough.signal))) {
      this.#parts.logger.warn(`${this.size} handlers did not end within ${graceS} s`);
    }
    await this.#stopAll();
  }

  /** End the grace that `finish` gives. */
  giveUp(): void {
    this.#enough.abort();
  }

  #ofContext(key: string): Handling[] {
    const running = this.#running.get(key);
    return [...(running === undefined ? [] : [running]), ...(this.#waiting.get(key) ?? [])];
  }

  /** The context has ended: an answer that is being streamed has nobody to read it. Other work goes on. */
  #leaveUnanswered(key: string): void {
    const running = this.#running.get(key);
    if (running !== undefined && running.answering.streams.size > 0) running.answering.cancel();
  }

  /** The sidecar would take the context from a worker that does not say "mine" for long. */
  #wait(handling: Handling): void {
    handling.wait(this.#parts.patienceS, () => {
      this.#own(handling);
    });
  }

  #own(handling: Handling): void {
    if (handling.own()) this.#parts.acknowledge(handling.deliveryId);
  }

  /** Begin one; its context has none running. */
  #start(handling: Handling): void {
    if (this.#parts.read === true && !handling.answering.cancelled) this.#wait(handling);
    else this.#own(handling);
    this.#running.set(handling.key, handling);
    void this.#run(handling).then(() => {
      this.#done(handling);
    });
  }

  /** The handler, then the end of the streams that it left open. Never rejects. */
  async #run({ event, answering }: Handling): Promise<void> {
    if (answering.cancelled) return; // nobody wants an answer, and none was begun
    try {
      await this.#parts.handle(event, answering.signal);
      for (const stream of answering.streams.values()) await stream.finish();
    } catch (error) {
      this.#report(event, answering, error);
      await Promise.all([...answering.streams.values()].map((stream) => stream.break()));
    }
  }

  #report(event: AgentEvent, answering: Answering, error: unknown): void {
    if (error instanceof ManagerGone) {
      this.#parts.logger.debug("the context ended before its event was handled");
    } else if (error instanceof StreamCancelled || (answering.signal.aborted && error === answering.signal.reason)) {
      this.#parts.logger.debug("an answer was given up");
    } else {
      this.#parts.logger.error(`a handler failed on ${event.kind}`, error);
    }
  }

  /** The next of its context takes its place, else another context may. */
  #done(handling: Handling): void {
    this.#running.delete(handling.key);
    const waiting = this.#waiting.get(handling.key);
    const following = this.#stopping ? undefined : waiting?.shift();
    if (waiting?.length === 0) this.#waiting.delete(handling.key);
    if (following === undefined) this.#parts.onRoom();
    else this.#start(following);
    if (this.#running.size === 0) for (const idle of this.#whenIdle.splice(0)) idle();
  }

  /** Tell every handler to end; what waits is not begun. */
  async #stopAll(): Promise<void> {
    this.#stopping = true;
    for (const handling of [...this.#waiting.values()].flat()) handling.stopWaiting();
    this.#waiting.clear();
    for (const { answering } of this.#running.values()) answering.stop();
    if (!(await this.#idleWithin(CANCEL_TIMEOUT_S))) {
      this.#parts.logger.error(`${this.size} handlers do not end though they were told to`);
    }
  }

  /** Whether no handler runs any more, so many seconds from now at most. */
  #idleWithin(seconds: number, enough?: AbortSignal): Promise<boolean> {
    if (this.#running.size === 0) return Promise.resolve(true);
    if (seconds <= 0 || enough?.aborted === true) return Promise.resolve(false);
    return new Promise((resolve) => {
      const tell = (idle: boolean): void => {
        clearTimeout(timer);
        resolve(idle);
      };
      const timer = setTimeout(tell, seconds * 1_000, false);
      this.#whenIdle.push(() => {
        tell(true);
      });
      enough?.addEventListener("abort", () => {
        tell(false);
      });
    });
  }
}
