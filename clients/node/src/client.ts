/** The agent's side over gRPC: one channel, every unary method, and senders on it. */

import { BackOff } from "./back-off.js";
import * as calls from "./calls.js";
import type { BatchItem, CriticalEvent, UnaryCall } from "./calls.js";
import { now, sleep } from "./clock.js";
import { Connection } from "./connection.js";
import { SidecarError } from "./errors.js";
import type { OutgoingMessage } from "./messages.js";
import { BASE_S, CAP_S, Retries } from "./retries.js";
import { Sender } from "./sender.js";
import type { SenderOptions } from "./sender.js";
import { settingsFrom } from "./settings.js";
import type { ClientOptions } from "./settings.js";
import type {
  BroadcastResult,
  BroadcastScope,
  CallOptions,
  ContextFacts,
  ContextGrant,
  ContextToken,
  ManagerStats,
  Receipt,
  SendOptions,
  Target,
} from "./values.js";

/** What `closeManager` may be told. */
export interface CloseOptions extends CallOptions {
  /** The WebSocket close code: 4505 (the default), or 4900 to 4999 with the service's own meaning. */
  readonly code?: number | undefined;
  /** The close text with a code of the service's own. */
  readonly reason?: string | undefined;
}

/**
 * Sends to users through a sidecar. One a process is enough.
 *
 * Every call has a deadline, in seconds: `timeoutS` of the call, else of the client. UNAVAILABLE is tried again within it
 * where that is safe. Calls reject with a SidecarError, or with the reason of the signal that gave them up: then they may
 * have been taken.
 */
export class SidecarClient {
  readonly #connection: Connection;
  readonly #senders = new Set<Sender>();

  constructor(options: ClientOptions = {}) {
    this.#connection = new Connection(settingsFrom(options));
  }

  /** Where the sidecar is. */
  get endpoint(): string {
    return this.#connection.settings.endpoint;
  }

  /** Close the senders side by side, within 5 s, then the channel; calls under way reject. Idempotent. */
  async close(): Promise<void> {
    await Promise.all([...this.#senders].map((sender) => sender.close()));
    this.#connection.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Resolves when the sidecar serves; it need not have been started yet. Rejects with TransportError when time is up. */
  async waitUntilReady(options: CallOptions = {}): Promise<void> {
    const deadline = now() + this.#timeoutS(options);
    const backOff = new BackOff(BASE_S, CAP_S, this.#connection.settings.uniform);
    for (;;) {
      const served = await this.#connection.serving(deadline, options.signal);
      if (served === true) return;
      const waitS = backOff.nextS();
      if (now() + waitS >= deadline) throw served;
      await this.#pause(waitS, options.signal);
    }
  }

  // DeliveryService

  /** Send one message. Repeated by itself where that is safe: the messageId stays the same. */
  async sendToUser(target: Target, message: OutgoingMessage, options: SendOptions = {}): Promise<Receipt> {
    return this.#run(calls.sendToUser(target, message, options.waitForAckS), options);
  }

  /** Send one critical event: never dropped for another, sent again until the client acknowledges it. Scope `emit`. */
  async emitCriticalEvent(target: Target, event: CriticalEvent, options: SendOptions = {}): Promise<Receipt> {
    return this.#run(calls.emitCriticalEvent(target, event, options.waitForAckS), options);
  }

  /** Send at most 1,000 messages; each stands or falls alone. The outcomes in the items' order. */
  async sendBatch(items: readonly BatchItem[], options: CallOptions = {}): Promise<(Receipt | SidecarError)[]> {
    return this.#run(calls.sendBatch(items), options);
  }

  /** Send one message to every context of the token's own user or tenant. Scope `broadcast:user`, `broadcast:tenant`. */
  async broadcast(
    contextToken: string,
    scope: BroadcastScope,
    message: OutgoingMessage,
    options: CallOptions = {},
  ): Promise<BroadcastResult> {
    return this.#run(calls.broadcast(contextToken, scope, message), options);
  }

  /** End the context; how many sockets it had. Scope `close`. Not repeated by itself. */
  async closeManager(target: Target, options: CloseOptions = {}): Promise<number> {
    return this.#run(calls.closeManager(target, options.code ?? 4505, options.reason ?? ""), options);
  }

  /** Read the context's counters. Scope `stats`. */
  async getManagerStats(target: Target, options: CallOptions = {}): Promise<ManagerStats> {
    return this.#run(calls.getManagerStats(target), options);
  }

  // ContextService

  /** Say what the token opens. */
  async getContext(contextToken: string, options: CallOptions = {}): Promise<ContextFacts> {
    return this.#run(calls.getContext(contextToken), options);
  }

  /** Get another token with the same scopes, while the context lives; the old one lives on. Not repeated by itself. */
  async refreshContextToken(contextToken: string, options: CallOptions = {}): Promise<ContextToken> {
    return this.#run(calls.refreshContextToken(contextToken), options);
  }

  /** End the token and all that was refreshed from it. Not repeated by itself. */
  async revokeContextToken(contextToken: string, options: CallOptions = {}): Promise<void> {
    await this.#run(calls.revokeContextToken(contextToken), options);
  }

  /** Get a context token for a user's own token and one of that user's contexts, by the service token. Not repeated. */
  async exchangeContextToken(
    userToken: string,
    connectionId: string,
    scopes: readonly string[] = [],
    options: CallOptions = {},
  ): Promise<ContextGrant> {
    const { serviceToken } = this.#connection.settings;
    return this.#run(calls.exchangeContextToken(userToken, connectionId, scopes, serviceToken), options);
  }

  // The fast way

  /** A sender for many messages: one stream, many messages a frame. Closed with the client, or before. */
  sender(options: SenderOptions = {}): Sender {
    const sender = new Sender(this.#connection, options, (closed) => {
      this.#senders.delete(closed);
    });
    this.#senders.add(sender);
    return sender;
  }

  /** The channel, for an agent of this client. @internal */
  static connectionOf(client: SidecarClient): Connection {
    return client.#connection;
  }

  /** Make the call until it is answered, given up or out of time. */
  async #run<Result, Request, Response>(
    call: UnaryCall<Result, Request, Response>,
    options: CallOptions,
  ): Promise<Result> {
    const { maxAttempts, uniform } = this.#connection.settings;
    const deadline = now() + this.#timeoutS(options) + call.heldS;
    const retries = new Retries(call.repeatable, deadline, maxAttempts, uniform);
    for (;;) {
      try {
        const { method, request, token } = call;
        return call.read(await this.#connection.unary(method, request, token, deadline, options.signal));
      } catch (failed) {
        if (!(failed instanceof SidecarError)) throw failed;
        const next = retries.next(failed, now());
        if (typeof next !== "number") throw next;
        await this.#pause(next, options.signal);
      }
    }
  }

  /** Wait, unless the client is closed or the caller gives up meanwhile. */
  async #pause(seconds: number, signal: AbortSignal | undefined): Promise<void> {
    const { closing } = this.#connection;
    await sleep(seconds, signal === undefined ? closing : AbortSignal.any([signal, closing]));
  }

  #timeoutS(options: CallOptions): number {
    const timeoutS = options.timeoutS ?? this.#connection.settings.timeoutS;
    if (!(timeoutS > 0)) throw new RangeError("timeoutS is more than 0");
    return timeoutS;
  }
}
