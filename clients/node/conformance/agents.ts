/** Agents whose handlers do what they are told, event by event. */

import { Agent, SidecarError, StreamCancelled } from "../src/index.js";
import type { AgentContext, Closed, InboundMessage, Logger, ReplyStream, SidecarClient } from "../src/index.js";
import { contentFrom, inbound, messageFrom, receipt, user } from "./values.js";
import type { MessageValues, Values } from "./values.js";

const nothing = (): void => undefined;
/** What a handler is told to throw is no news. */
const QUIET: Logger = { debug: nothing, warn: nothing, error: nothing };

/** What a handler throws on command. */
class HandlerFailed extends Error {}

/** One step that a handler is told to take. */
interface Step {
  readonly what: "reply_send" | "reply_end" | "reply_fail";
  readonly message?: MessageValues;
  readonly event_type?: string;
  readonly stream_id?: string;
  resolve(answer: Values): void;
  reject(error: Error): void;
}

/** Values that are waited for, in order. */
export class Waited<T> {
  readonly #values: T[] = [];
  readonly #takers: ((value: T) => void)[] = [];

  put(value: T): void {
    const taker = this.#takers.shift();
    if (taker === undefined) this.#values.push(value);
    else taker(value);
  }

  next(): Promise<T> {
    const value = this.#values.shift();
    if (value !== undefined) return Promise.resolve(value);
    return new Promise((resolve) => this.#takers.push(resolve));
  }

  drain(): T[] {
    return this.#values.splice(0);
  }
}

/** One handler of a message, at work. */
class Handling {
  readonly #message: InboundMessage;
  readonly #steps = new Waited<Step>();
  readonly over: Promise<void>;
  #isOver = false;
  #end: () => void = () => undefined;

  constructor(message: InboundMessage) {
    this.#message = message;
    this.over = new Promise((resolve) => (this.#end = resolve));
  }

  /** Until it is told to end, or its client wants no more. A stream is opened with its first chunk. */
  async obey(): Promise<void> {
    const { signal } = this.#message;
    const aborted = new Promise<never>((_, reject) => {
      signal.addEventListener("abort", () => {
        reject(signal.reason as Error);
      });
    });
    let stream: ReplyStream | undefined;
    try {
      for (;;) {
        const step = await Promise.race([this.#steps.next(), aborted]);
        if (step.what === "reply_send") {
          stream ??= this.#message.reply({ eventType: step.event_type, streamId: step.stream_id });
          await this.#send(stream, step);
        } else {
          step.resolve({});
          if (step.what === "reply_fail") throw new HandlerFailed();
          return;
        }
      }
    } finally {
      aborted.catch(() => undefined);
      this.#isOver = true;
      this.#end();
      for (const step of this.#steps.drain()) step.reject(over());
    }
  }

  async #send(stream: ReplyStream, step: Step): Promise<void> {
    try {
      step.resolve(receipt(await stream.send(contentFrom(step.message ?? {}))));
    } catch (error) {
      step.reject(error as Error);
      if (!(error instanceof SidecarError) || error instanceof StreamCancelled) throw error;
    }
  }

  async tell(what: Step["what"], said: Partial<Step>): Promise<Values> {
    if (this.#isOver) throw over();
    const came = await new Promise<Values>((resolve, reject) => {
      this.#steps.put({ ...said, what, resolve, reject });
    });
    if (what !== "reply_send") await this.over;
    return came;
  }

  cancelled(): Promise<void> {
    const { signal } = this.#message;
    if (signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      signal.addEventListener("abort", () => {
        resolve();
      });
    });
  }
}

function over(): StreamCancelled {
  return new StreamCancelled("FAILED_PRECONDITION", "STREAM_CANCELLED", "it is over");
}

/** One agent by its name. */
export class RunningAgent {
  readonly events = new Waited<Values>();
  readonly #agent: Agent;
  readonly #contexts = new Map<number, AgentContext>();
  readonly #handlings = new Map<number, Handling>();
  #handles = 0;

  constructor(client: SidecarClient, serviceName: string, events: readonly string[], credits: number | undefined) {
    const notice = (kind: string) => (context: AgentContext) => {
      this.#put(kind, context, { context_token: context.contextToken });
    };
    this.#agent = new Agent(serviceName, { client, credits, logger: QUIET })
      .onOpened(notice("opened"))
      .onAway(notice("away"))
      .onBack(notice("back"))
      .onClosed((context, { code, reason }: Closed) => {
        this.#put("closed", context, { code, reason });
      });
    for (const event of events) this.#agent.onMessage(event, (context, message) => this.#answer(context, message));
  }

  async open(): Promise<void> {
    await this.#agent.start().waitAttached();
  }

  async close(): Promise<void> {
    await this.#agent.stop();
  }

  async send(handle: number, message: MessageValues): Promise<Values> {
    const context = this.#contexts.get(handle);
    if (context === undefined) throw new Error("no such handle");
    return receipt(await context.send(messageFrom(message)));
  }

  handling(handle: number): Handling {
    const handling = this.#handlings.get(handle);
    if (handling === undefined) throw new Error("no such handle");
    return handling;
  }

  async #answer(context: AgentContext, message: InboundMessage): Promise<void> {
    const handling = new Handling(message);
    this.#handlings.set(this.#handles + 1, handling);
    this.#put("message", context, { context_token: context.contextToken, ...inbound(message) });
    await handling.obey();
  }

  #put(kind: string, context: AgentContext, said: Values): void {
    const handle = ++this.#handles;
    this.#contexts.set(handle, context);
    this.events.put({ handle, kind, isolation_key: context.isolationKey, user: user(context.user), ...said });
  }
}
