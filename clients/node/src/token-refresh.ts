/** Keeps the tokens of living contexts good: of those that the agent or its caller still holds, each before it ends. */

import type { AgentContext } from "./agent-context.js";
import { ManagerGone, SidecarError, TokenError } from "./errors.js";
import type { Logger } from "./logger.js";
import type { ContextToken } from "./values.js";

/** When to try again what failed for now; a token has minutes left then. */
const AGAIN_S = 5;
/** Contexts are looked through no more often: each look goes through all. */
const REST_S = 0.1;
const MAX_TIMER_S = 2_000_000;

/** What it needs of the world. `now`: monotonic seconds. */
export interface RefreshPorts {
  refresh(contextToken: string): Promise<ContextToken>;
  now(): number;
  readonly logger: Logger;
}

/** By one timer, which holds no process. */
export class TokenRefresh {
  readonly #ports: RefreshPorts;
  /** Each with the time of its next look, in monotonic seconds. What nobody else holds is not held here either. */
  readonly #due = new Map<WeakRef<AgentContext>, number>();
  /** Those that are due at some time. */
  readonly #kept = new WeakSet<AgentContext>();
  #timer: NodeJS.Timeout | undefined;
  #timerAt = Infinity;
  #stopped = false;

  constructor(ports: RefreshPorts) {
    this.#ports = ports;
  }

  /** How many contexts it looks after. */
  get size(): number {
    return this.#due.size;
  }

  /**
   * Refresh that context's token as long as somebody holds the context. It is told of every token that an event brings:
   * after one that was refused, the next is the first to be refreshed again.
   */
  keep(context: AgentContext): void {
    if (!this.#kept.has(context)) this.#put(new WeakRef(context), context, context.refreshAt);
  }

  /** No more. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#due.clear();
  }

  /** Look after those that are due now: one after the other, so that the sidecar is not asked for all at once. */
  async look(): Promise<void> {
    const now = this.#ports.now();
    const due = [...this.#due].filter(([, at]) => at <= now).map(([held]) => held);
    for (const held of due) {
      this.#due.delete(held);
      const context = held.deref();
      if (context === undefined || context.ended) continue;
      this.#put(held, context, context.refreshAt > now ? context.refreshAt : await this.#renew(context));
    }
    this.#arm(Math.min(...this.#due.values()));
  }

  /** When to look again. Never rejects. */
  async #renew(context: AgentContext): Promise<number> {
    const { contextToken } = context;
    try {
      const token = await this.#ports.refresh(contextToken);
      context.renew(token.text);
      return context.refreshAt;
    } catch (error) {
      if (error instanceof ManagerGone) {
        context.end();
        return Infinity;
      }
      if (error instanceof TokenError) {
        context.lapse(contextToken);
        return context.refreshAt;
      }
      const why = error instanceof SidecarError ? error.reason || error.code : "the client is closed";
      if (!this.#stopped) this.#ports.logger.warn(`a context token could not be refreshed: ${why}`);
      return this.#ports.now() + AGAIN_S;
    }
  }

  #put(held: WeakRef<AgentContext>, context: AgentContext, at: number): void {
    if (at === Infinity || this.#stopped) {
      this.#kept.delete(context);
      return;
    }
    this.#kept.add(context);
    this.#due.set(held, at);
    this.#arm(at);
  }

  #arm(at: number): void {
    if (this.#stopped || at >= this.#timerAt) return;
    clearTimeout(this.#timer);
    this.#timerAt = at;
    const inS = Math.min(Math.max(at - this.#ports.now(), REST_S), MAX_TIMER_S);
    this.#timer = setTimeout(() => {
      this.#timerAt = Infinity;
      void this.look();
    }, inS * 1_000);
    this.#timer.unref();
  }
}
