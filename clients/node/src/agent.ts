/** An agent service: attaches to the sidecar, is told of its users, answers them. Runs no server of its own. */

import { onAbort } from "./abort.js";
import type { AgentContext } from "./agent-context.js";
import type { AgentEvent, Closed, InboundMessage } from "./agent-events.js";
import { AgentLoop } from "./agent-loop.js";
import type { Subscription } from "./agent-stream.js";
import { SidecarClient } from "./client.js";
import { HandOver } from "./hand-over.js";
import { consoleLogger } from "./logger.js";
import type { Logger } from "./logger.js";
import type { ClientOptions } from "./settings.js";
import type { CallOptions } from "./values.js";

const DEFAULT_CREDITS = 64;
const DEFAULT_GRACE_S = 10;
const SIGNALS = ["SIGTERM", "SIGINT"] as const;

/** Handles `opened`, `away` and `back`. `signal`: aborted when the handler is to end. */
export type ContextHandler = (context: AgentContext, signal: AbortSignal) => unknown;
/** Handles `closed`. */
export type ClosedHandler = (context: AgentContext, closed: Closed, signal: AbortSignal) => unknown;
/** Handles a message. The signal is the message's own. */
export type MessageHandler = (context: AgentContext, message: InboundMessage, signal: AbortSignal) => unknown;

/** What an agent may be told; where the sidecar is, as for a client. */
export interface AgentOptions extends ClientOptions {
  /** The events that it takes. Default: those that it has handlers for, or `*`: whatever no other service takes. */
  readonly subscriptions?: readonly (string | Subscription)[] | undefined;
  /** Events in hand at most. Default: 64. */
  readonly credits?: number | undefined;
  /** How long an event may stay unacknowledged before it is sent again. Default: the sidecar's. */
  readonly ackTimeoutS?: number | undefined;
  /** What handlers have to end in when the agent stops. Default: 10. */
  readonly graceS?: number | undefined;
  /** A client to share, which is not closed, instead of a connection of its own. */
  readonly client?: SidecarClient | undefined;
  /** Default: standard error, warnings and errors. */
  readonly logger?: Logger | undefined;
}

/**
 * One worker of an agent service. Give it handlers and `run` it, or read it:
 *
 *     for await (const event of new Agent("answers")) { ... }
 *
 * Events of one context are handled one after the other, those of different contexts side by side, `credits` at most. A
 * handler that throws is logged, and nothing else ends for it. An event is acknowledged when its handler begins; one that
 * waits behind another of its context when half of `ackTimeoutS` is over. Another worker gets it only where this process is
 * lost or stopped before that.
 */
export class Agent {
  readonly #serviceName: string;
  readonly #options: AgentOptions;
  readonly #handlers = new Map<AgentEvent["kind"], (event: AgentEvent, signal: AbortSignal) => unknown>();
  readonly #messageHandlers = new Map<string, MessageHandler>();
  readonly #logger: Logger;
  #loop: AgentLoop | undefined;
  #reader: HandOver | undefined;

  /** `serviceName`: the same for all workers of the service. Connects when it is started. */
  constructor(serviceName: string, options: AgentOptions = {}) {
    const { client, credits = DEFAULT_CREDITS } = options;
    if (!(credits >= 1)) throw new RangeError("credits is at least 1");
    const where = [options.endpoint, options.serviceToken, options.tls, options.credentials];
    if (client !== undefined && where.some((given) => given !== undefined)) {
      throw new TypeError("give either a client, or where one is to connect");
    }
    this.#serviceName = serviceName;
    this.#options = options;
    this.#logger = options.logger ?? consoleLogger;
  }

  // What handles what

  /** A context was made. Told of every context of the service's tenants. */
  onOpened(handler: ContextHandler): this {
    return this.#on("opened", (event, signal) => handler(event.context, signal));
  }

  /** The user's connection is lost, for now. */
  onAway(handler: ContextHandler): this {
    return this.#on("away", (event, signal) => handler(event.context, signal));
  }

  /** The user is connected again. */
  onBack(handler: ContextHandler): this {
    return this.#on("back", (event, signal) => handler(event.context, signal));
  }

  /** The context has ended. */
  onClosed(handler: ClosedHandler): this {
    return this.#on("closed", (event, signal) => handler(event.context, event as Closed, signal));
  }

  /** A message of the user's: of one event, or of those that no other handler takes. */
  onMessage(handler: MessageHandler): this;
  onMessage(event: string, handler: MessageHandler): this;
  onMessage(first: string | MessageHandler, second?: MessageHandler): this {
    const [event, handler] = typeof first === "string" ? [first, second] : ["*", first];
    if (typeof handler !== "function") throw new TypeError("a handler is a function");
    if (this.#messageHandlers.has(event)) throw new Error(`the event ${event} has a handler`);
    this.#checkNotStarted();
    this.#messageHandlers.set(event, handler);
    return this;
  }

  #on(kind: AgentEvent["kind"], handler: (event: AgentEvent, signal: AbortSignal) => unknown): this {
    if (this.#handlers.has(kind)) throw new Error(`${kind} has a handler`);
    this.#checkNotStarted();
    this.#handlers.set(kind, handler);
    return this;
  }

  #checkNotStarted(): void {
    if (this.#loop !== undefined) throw new Error("the agent has been started");
  }

  // Running

  /**
   * Serve until `stop`, or until the signal is aborted: then it stops with its grace. Rejects with what the sidecar refuses
   * for good: SubscriptionTaken, ServiceDenied, TokenError, BadRequest.
   */
  async run({ signal }: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
    const loop = this.#start();
    const stop = (): void => {
      void this.stop();
    };
    const forget = signal && onAbort(signal, stop);
    if (signal?.aborted === true) stop();
    await loop.ended;
    forget?.();
    await this.stop();
    this.#throwRefusal(loop);
  }

  /** Serve as a program of its own, until SIGTERM or SIGINT. A second signal ends the process as it always does. */
  async runForever(): Promise<void> {
    const stopping = new AbortController();
    const stop = (): void => {
      stopping.abort();
    };
    for (const name of SIGNALS) process.once(name, stop);
    try {
      await this.run({ signal: stopping.signal });
    } finally {
      for (const name of SIGNALS) process.off(name, stop);
    }
  }

  /** Begin to attach; does not wait for the sidecar. For a program that does more than this: `stop` it in the end. */
  start(): this {
    this.#start();
    return this;
  }

  /** Resolves when the sidecar has registered this worker. Rejects with its refusal, or TransportError when time is up. */
  async waitAttached(options: CallOptions = {}): Promise<void> {
    await this.#started().waitAttached(options);
  }

  /**
   * Detach, let handlers end within the grace, tell the others to by their signal. Idempotent, bounded. What is not
   * acknowledged, and what comes from now on, other workers of the service have at once; what is, is handled here. A handler
   * that is told to end fails its response streams, so that their users see an end.
   */
  async stop({ graceS = this.#options.graceS ?? DEFAULT_GRACE_S }: { readonly graceS?: number | undefined } = {}): Promise<void> {
    await this.#loop?.stop(graceS);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  /**
   * Read the events instead of handling them; asking for the next says that the one before is handled. Throws what the
   * sidecar refuses for good; ends when the agent stops. Who leaves the loop stops the agent.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<AgentEvent, void, undefined> {
    if (this.#handlers.size + this.#messageHandlers.size > 0) throw new Error("an agent with handlers is not read");
    const loop = this.#loop ?? this.#start();
    const reader = this.#reader;
    if (reader === undefined) throw new Error("an agent is read once");
    this.#reader = undefined;
    try {
      for (;;) {
        const event = await reader.next(() => loop.over);
        if (event === undefined) break;
        loop.begun(event);
        yield event;
      }
    } finally {
      await this.stop({ graceS: 0 });
    }
    this.#throwRefusal(loop);
  }

  #start(): AgentLoop {
    if (this.#loop !== undefined) throw new Error("an agent is started once");
    const options = this.#options;
    const reader = this.#handlers.size + this.#messageHandlers.size === 0 ? new HandOver() : undefined;
    this.#reader = reader;
    const loop = new AgentLoop({
      client: options.client ?? new SidecarClient(options),
      ownsClient: options.client === undefined,
      registration: {
        serviceName: this.#serviceName,
        subscriptions: this.#taken(),
        ackTimeoutS: options.ackTimeoutS,
      },
      credits: options.credits ?? DEFAULT_CREDITS,
      handle: (event, signal) => (reader === undefined ? this.#handle(event, signal) : reader.handle(event, signal)),
      read: reader !== undefined,
      logger: this.#logger,
      uniform: options.uniform ?? Math.random,
    });
    this.#loop = loop;
    void loop.ended.then(() => reader?.wake());
    return loop;
  }

  #started(): AgentLoop {
    if (this.#loop === undefined) throw new Error("the agent has not been started");
    return this.#loop;
  }

  #throwRefusal(loop: AgentLoop): void {
    if (loop.refusal !== undefined) throw loop.refusal as Error;
  }

  #taken(): readonly Subscription[] {
    const handled = this.#messageHandlers.size > 0 ? [...this.#messageHandlers.keys()] : ["*"];
    return (this.#options.subscriptions ?? handled).map((each) => (typeof each === "string" ? { event: each } : each));
  }

  async #handle(event: AgentEvent, signal: AbortSignal): Promise<void> {
    if (event.kind !== "message") {
      await this.#handlers.get(event.kind)?.(event, signal);
      return;
    }
    const handler = this.#messageHandlers.get(event.event) ?? this.#messageHandlers.get("*");
    if (handler === undefined) this.#logger.warn(`no handler takes the event ${event.event}`);
    else await handler(event.context, event, signal);
  }
}
