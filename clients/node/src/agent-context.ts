/** The connection context that an agent's handler answers in: who it is, and what may be sent there. */

import type { CriticalEvent } from "./calls.js";
import type { CloseOptions, SidecarClient } from "./client.js";
import { ManagerGone, TokenError } from "./errors.js";
import type { OutgoingMessage } from "./messages.js";
import type { Sender } from "./sender.js";
import type { Receipt, SendOptions, Target, UserContext } from "./values.js";

/** Of a token's life since it came. The sidecar hands a token out until half of its life is over. */
const REFRESH_AT = 0.4;

/** What every context of an agent sends through. `now`: monotonic seconds. */
export interface AgentPorts {
  readonly client: SidecarClient;
  readonly sender: Sender;
  readonly now: () => number;
}

/** One connection context of one user. Its token is always the newest that came; it is a secret and not printed. */
export class AgentContext {
  readonly isolationKey: string;
  readonly user: UserContext;
  readonly #ports: AgentPorts;
  #token = "";
  #ended = false;
  #refreshAt = Infinity;

  /** @internal */
  constructor(isolationKey: string, user: UserContext, ports: AgentPorts) {
    this.isolationKey = isolationKey;
    this.user = user;
    this.#ports = ports;
  }

  /** The newest context token. Read it each time. */
  get contextToken(): string {
    return this.#token;
  }

  /** The context has ended: it was closed, or the sidecar has answered MANAGER_GONE. */
  get ended(): boolean {
    return this.#ended;
  }

  /** When the token is to be refreshed, in monotonic seconds. @internal */
  get refreshAt(): number {
    return this.#refreshAt;
  }

  /** A newer token has come. @internal */
  renew(token: string): void {
    if (token === "" || token === this.#token) return;
    this.#token = token;
    this.#refreshAt = this.#ports.now() + REFRESH_AT * lifeS(token);
  }

  /** That token is good no more: it is not refreshed. One that came meanwhile is. @internal */
  lapse(token: string): void {
    if (token === this.#token) this.#refreshAt = Infinity;
  }

  /** The context has ended. @internal */
  end(): void {
    this.#ended = true;
  }

  /** Send one message to this context. Rejects as `SidecarClient.sendToUser` does; ManagerGone: the context has ended. */
  async send(message: OutgoingMessage, options: SendOptions = {}): Promise<Receipt> {
    const { sender, client } = this.#ports;
    if (options.waitForAckS === undefined) return this.call((target) => sender.send(target, message, options));
    return this.call((target) => client.sendToUser(target, message, options));
  }

  /** Send one critical event: never dropped for another. Scope `emit`. */
  async emitCriticalEvent(event: CriticalEvent, options: SendOptions = {}): Promise<Receipt> {
    return this.call((target) => this.#ports.client.emitCriticalEvent(target, event, options));
  }

  /** End the context; how many sockets it had. Scope `close`. */
  async close(options: CloseOptions = {}): Promise<number> {
    return this.call((target) => this.#ports.client.closeManager(target, options));
  }

  /** Make a call with the newest token; again where a newer one came while the first was refused. @internal */
  async call<Result>(make: (target: Target) => Promise<Result>): Promise<Result> {
    for (;;) {
      const token = this.#token;
      const { isolationKey } = this;
      try {
        return await make({ isolationKey, contextToken: token, expectedUserId: this.user.userId });
      } catch (error) {
        if (error instanceof ManagerGone) this.end();
        if (!(error instanceof TokenError) || token === this.#token) throw error;
      }
    }
  }
}

/**
 * How long the token lives in all, by its own claims (RFC 7519 §4.1); Infinity where it does not say. From one clock, the
 * sidecar's: how far it is from this one does not matter.
 */
function lifeS(token: string): number {
  try {
    const body = Buffer.from(token.split(".")[1] ?? "", "base64url").toString();
    const { exp, iat } = JSON.parse(body) as { exp?: unknown; iat?: unknown };
    return typeof exp === "number" && typeof iat === "number" ? exp - iat : Infinity;
  } catch {
    return Infinity;
  }
}
