/** What an agent does while it runs: attach, again after every break; take events in; stop in order. */

import { AgentContext } from "./agent-context.js";
import type { AgentPorts } from "./agent-context.js";
import { InboundMessage } from "./agent-events.js";
import type { AgentEvent } from "./agent-events.js";
import { AgentMemory } from "./agent-memory.js";
import type { MessageName } from "./agent-memory.js";
import { AgentStream, patienceS } from "./agent-stream.js";
import type { Registration } from "./agent-stream.js";
import { Answering } from "./answering.js";
import { contentTypeFrom, userContextFrom } from "./answers.js";
import { BackOff } from "./back-off.js";
import type { Uniform } from "./back-off.js";
import { SidecarClient } from "./client.js";
import { now, sleep } from "./clock.js";
import { Dispatcher, Handling } from "./dispatch.js";
import type { Handle } from "./dispatch.js";
import { deadlinePassed } from "./error-catalogue.js";
import { Internal } from "./errors.js";
import type { SidecarError } from "./errors.js";
import type { AttachResponse_Event } from "./generated/sidecar/api/v1/agent_service.js";
import type { Logger } from "./logger.js";
import { isPassing } from "./passing.js";
import type { Sender } from "./sender.js";
import { TokenRefresh } from "./token-refresh.js";
import type { CallOptions } from "./values.js";

const BASE_S = 0.1;
const CAP_S = 10;
/** An attachment that lived so long was a success: the back-off begins again. */
const STABLE_S = 5;
const HALF_CLOSE_TIMEOUT_S = 5;

/** What a loop is made of. */
export interface LoopParts {
  readonly client: SidecarClient;
  readonly ownsClient: boolean;
  readonly registration: Registration;
  readonly credits: number;
  readonly handle: Handle;
  /** `handle` only keeps events for a reader, who says of each that it has `begun`. */
  readonly read: boolean;
  readonly logger: Logger;
  readonly uniform: Uniform;
}

/** One running agent. Runs from its making. */
export class AgentLoop {
  /**
   * Resolves when no further event will come: the sidecar refused it, `refusal` says whether, or what it had taken when it was
   * stopped is handled. Never rejects.
   */
  readonly ended: Promise<void>;
  /** What the sidecar refused for good. */
  refusal: unknown;
  readonly #parts: LoopParts;
  readonly #memory = new AgentMemory();
  readonly #dispatcher: Dispatcher;
  readonly #sender: Sender;
  readonly #ports: AgentPorts;
  readonly #refresh: TokenRefresh;
  readonly #backOff: BackOff;
  readonly #contexts = new Map<string, WeakRef<AgentContext>>();
  readonly #dropped = new FinalizationRegistry<string>((key) => {
    if (this.#contexts.get(key)?.deref() === undefined) this.#contexts.delete(key);
  });
  /** Aborted when no further Attach is to be tried. */
  readonly #leaving = new AbortController();
  readonly #detached: Promise<void>;
  #end: () => void = () => undefined;
  #stream: AgentStream | undefined;
  #attached = false;
  #isDetached = false;
  #isOver = false;
  #whenChanged: (() => void)[] = [];
  #stopping: Promise<void> | undefined;

  constructor(parts: LoopParts) {
    this.#parts = parts;
    const { client, logger } = parts;
    this.#backOff = new BackOff(BASE_S, CAP_S, parts.uniform);
    this.#dispatcher = new Dispatcher({
      handle: parts.handle,
      onRoom: () => {
        if (this.#stopping === undefined) this.#stream?.credit(1);
      },
      // While it is not attached nothing is said: the event comes again then, is known, and is acknowledged.
      acknowledge: (deliveryId) => this.#stream?.acknowledge(deliveryId),
      patienceS: patienceS(parts.registration),
      read: parts.read,
      logger,
    });
    this.#sender = client.sender({
      onStreamCancelled: ({ isolationKey, streamId, replyTo }) => {
        this.#cancel(isolationKey, streamId, replyTo);
      },
    });
    this.#ports = { client, sender: this.#sender, now };
    this.#refresh = new TokenRefresh({ refresh: (token) => client.refreshContextToken(token), now, logger });
    this.ended = new Promise((resolve) => (this.#end = resolve));
    this.#detached = this.#attach();
  }

  /** Nothing more will come. */
  get over(): boolean {
    return this.#isOver;
  }

  /** Resolves when registered. Rejects with the refusal, the signal's reason, or TransportError when time is up. */
  async waitAttached({ timeoutS, signal }: CallOptions): Promise<void> {
    const limits = [signal, timeoutS === undefined ? undefined : AbortSignal.timeout(timeoutS * 1_000)];
    const enough = AbortSignal.any(limits.filter((limit) => limit !== undefined));
    while (!this.#attached) {
      if (this.refusal !== undefined) throw this.refusal as Error;
      signal?.throwIfAborted();
      if (enough.aborted || this.#isDetached) throw deadlinePassed("the sidecar has not registered the agent");
      await new Promise<void>((resolve) => {
        this.#whenChanged.push(resolve);
        enough.addEventListener("abort", () => {
          resolve();
        });
      });
    }
  }

  #changed(): void {
    for (const tell of this.#whenChanged.splice(0)) tell();
  }

  // Attaching

  /** One Attach call after the other, until one is left or refused for good. Never rejects. */
  async #attach(): Promise<void> {
    try {
      while (!this.#leaving.signal.aborted && (await this.#attachOnce()));
    } catch (failed) {
      // Refused for good; or the client was closed, or the agent stopped, while it waited.
      if (!this.#leaving.signal.aborted) this.refusal = failed;
    } finally {
      this.#isDetached = true;
      this.#changed();
      if (!this.#leaving.signal.aborted) this.#endEvents();
    }
  }

  #endEvents(): void {
    this.#isOver = true;
    this.#end();
  }

  /** Whether to attach again. Throws what no further call would change. */
  async #attachOnce(): Promise<boolean> {
    const began = now();
    const error = await this.#serve();
    this.#attached = false;
    if (error === undefined) return false;
    if (this.#leaving.signal.aborted) return false; // what others were left must not come back
    const { logger } = this.#parts;
    const why = error.reason || error.code;
    if (!(isPassing(error) || error instanceof Internal)) {
      logger.error(`the agent is refused: ${why}`);
      throw error;
    }
    // Once a break is news.
    logger[this.#backOff.tries > 0 ? "debug" : "warn"](`not attached: ${why}; attaching again`);
    if (now() - began >= STABLE_S) this.#backOff.reset();
    await sleep(this.#backOff.nextS(error.retryAfterS), this.#leaving.signal);
    return true;
  }

  async #serve(): Promise<SidecarError | undefined> {
    const { client, registration, credits } = this.#parts;
    // From here to the first frame nothing is awaited: what is finished later is a credit more.
    const stream: AgentStream = new AgentStream(
      SidecarClient.connectionOf(client),
      registration,
      Math.max(0, credits - this.#dispatcher.size),
      {
        registered: () => {
          this.#attached = true;
          this.#changed();
        },
        event: (frame) => {
          this.#onEvent(stream, frame);
        },
      },
    );
    this.#stream = stream;
    const error = await stream.ended;
    this.#stream = undefined;
    this.#giveBack();
    return error;
  }

  /** The reader has that event: it is this process's. */
  begun(event: AgentEvent): void {
    this.#dispatcher.begun(event);
  }

  /** Who is not attached holds nothing back that others may have: it comes again, here or to another worker. */
  #giveBack(): void {
    for (const { deliveryId, event } of this.#dispatcher.giveBack()) this.#memory.forget(deliveryId, nameOf(event));
  }

  // Events

  #onEvent(stream: AgentStream, frame: AttachResponse_Event): void {
    if (frame.kind?.$case === "cancelled") {
      const { streamId, messageId } = frame.kind.value;
      this.#cancel(frame.isolationKey, streamId, messageId);
      return;
    }
    if (this.#stopping !== undefined) return; // it was under way when this worker left: not acknowledged, it goes to another
    const { deliveryId, redelivered } = frame;
    const answering = new Answering();
    const event = eventFrom(frame, this.#contextOf(frame), answering);
    const name = event === undefined ? undefined : nameOf(event);
    if (event === undefined || !this.#memory.isNew(deliveryId, name, redelivered)) {
      this.#dispatcher.own(frame.isolationKey, deliveryId);
      stream.acknowledge(deliveryId);
      stream.credit(1);
      return;
    }
    if (event.kind === "closed") {
      event.context.end();
      this.#contexts.delete(frame.isolationKey);
    }
    if (name !== undefined && this.#memory.isCancelled(name)) answering.cancel();
    this.#dispatcher.receive(new Handling(event, answering, deliveryId));
  }

  /** The context as its holders know it, with the token that came. */
  #contextOf(frame: AttachResponse_Event): AgentContext {
    const known = this.#contexts.get(frame.isolationKey)?.deref();
    if (known !== undefined) {
      known.renew(frame.contextToken);
      this.#refresh.keep(known);
      return known;
    }
    const context = new AgentContext(frame.isolationKey, userContextFrom(frame.context), this.#ports);
    context.renew(frame.contextToken);
    this.#contexts.set(frame.isolationKey, new WeakRef(context));
    this.#dropped.register(context, frame.isolationKey);
    this.#refresh.keep(context);
    return context;
  }

  #cancel(isolationKey: string, streamId: string, messageId: string): void {
    if (messageId !== "") this.#memory.cancel({ isolationKey, messageId });
    this.#dispatcher.cancel(isolationKey, streamId, messageId);
  }

  // The end

  /** See `Agent.stop`. A second call waits for the first; one without grace has the handlers end sooner. */
  async stop(graceS: number): Promise<void> {
    if (graceS <= 0) this.#dispatcher.giveUp();
    this.#stopping ??= this.#stopInOrder(graceS);
    await this.#stopping;
  }

  /** Leave first, so that nobody waits for this worker's grace whom another could answer. */
  async #stopInOrder(graceS: number): Promise<void> {
    this.#dispatcher.giveBack();
    const left = this.#halfClose();
    await this.#dispatcher.finish(graceS);
    this.#endEvents();
    await left;
    this.#refresh.stop();
    if (this.#parts.ownsClient) await this.#parts.client.close();
    else await this.#sender.close();
  }

  /** Say what is still to be said, then be attached no more; the sidecar hands on what is not acknowledged. */
  async #halfClose(): Promise<void> {
    if (this.#attached) this.#stream?.leave();
    else this.#stream?.cancel();
    this.#leaving.abort(new DOMException("the agent stops", "AbortError"));
    const enough = setTimeout(() => this.#stream?.cancel(), HALF_CLOSE_TIMEOUT_S * 1_000);
    await this.#detached;
    clearTimeout(enough);
  }
}

/** What a message is known by; undefined for other events. */
function nameOf(event: AgentEvent): MessageName | undefined {
  return event.kind === "message" ? { isolationKey: event.context.isolationKey, messageId: event.id } : undefined;
}

/** The event as its handlers know it; undefined for a kind that came after this version. */
function eventFrom(frame: AttachResponse_Event, context: AgentContext, answering: Answering): AgentEvent | undefined {
  const kind = frame.kind;
  switch (kind?.$case) {
    case "opened":
    case "away":
    case "back":
      return { kind: kind.$case, context };
    case "closed":
      return { kind: "closed", context, code: kind.value.code, reason: kind.value.reason };
    case "message": {
      const { messageId: id, eventType: event, payload, contentType } = kind.value;
      const { redelivered } = frame;
      const parts = { id, event, payload, contentType: contentTypeFrom(contentType), redelivered };
      return new InboundMessage(context, parts, answering);
    }
    default:
      return undefined;
  }
}
