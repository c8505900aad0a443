/** One socket, from the asking for a token to its end: greets, reads frames, writes at its pace, renews the token. */

import { ConnectionEnded } from "./errors.js";
import { ProtocolError, parse } from "./frames.js";
import type { Frame } from "./frames.js";
import { Pace } from "./pace.js";
import type { Session } from "./session.js";
import type { ConnectOptions, Event, Scope } from "./types.js";

/** Offered alone: a WebSocket that gets another one, or none, fails by itself. */
const SUBPROTOCOL = "sidecar.v1.json";
/** From the asking for a token to the welcome. */
const WELCOME_TIMEOUT_MS = 20_000;
/** At most one acknowledgement in this time, but for one at once where there was none for as long. */
const ACK_EVERY_MS = 20;
/** What this side closes with when the sidecar broke the protocol: none of its codes, and it does not end the context. */
const PROTOCOL_ERROR = 4400;
/** After so long, or up to twice of it, a new user token is offered again. */
const RENEW_MS = 5_000;
const OPEN = 1;

/** How a socket ended: by a close code, or by what was thrown on the way to it. */
export interface SocketEnd {
  readonly code?: number;
  readonly reason?: string;
  readonly error?: unknown;
  /** Since its welcome. */
  readonly livedMs: number;
}

export interface SocketPorts {
  /** `event`: what the welcome has to say to the consumers. */
  welcomed(event: Event | undefined): void;
  frame(frame: Frame, size: number): void;
  ended(end: SocketEnd): void;
}

interface Wire {
  readonly readyState: number;
  onopen: (() => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  onerror: (() => void) | null;
  send(data: string): void;
  close(code?: number): void;
}

export class Socket {
  readonly #options: ConnectOptions;
  readonly #scope: Scope;
  readonly #session: Session;
  readonly #ports: SocketPorts;
  #wire: Wire | undefined;
  #over = false;
  #welcomedAt = 0;
  #ackedAt = 0;
  #pace: Pace;
  readonly #timers = new Map<string, unknown>();

  constructor(
    url: string,
    options: ConnectOptions,
    scope: Scope,
    session: Session,
    ports: SocketPorts,
  ) {
    this.#options = options;
    this.#scope = scope;
    this.#session = session;
    this.#ports = ports;
    const { framesPerSecond = 50, bytesPerSecond = 524_288 } = options.tuning ?? {};
    this.#pace = new Pace(framesPerSecond, bytesPerSecond, this.#now());
    this.#later("welcome", WELCOME_TIMEOUT_MS, () => {
      this.#fail(new Error("no welcome in time"));
    });
    this.#open(url).catch((error: unknown) => {
      this.#fail(error);
    });
  }

  /** Let go of it. Nothing that still comes of it counts. */
  leave(code: number): void {
    if (this.#welcomedAt && this.#session.owed) this.#send(this.#session.ack());
    this.#drop();
    this.#wire?.close(code);
  }

  /** Say what there is to say. */
  write(): void {
    if (!this.#welcomedAt || this.#wire?.readyState !== OPEN) return;
    this.#acknowledge();
    if (this.#timers.has("write")) return;
    for (;;) {
      const wait = this.#pace.wait(this.#now());
      // Looked at only when it may go: what is taken is written.
      if (wait) {
        this.#later("write", wait, () => {
          this.write();
        });
        return;
      }
      const text = this.#session.next();
      if (text === undefined) return;
      this.#pace.take(text.length);
      this.#send(text);
    }
  }

  async #open(url: string): Promise<void> {
    const token = await this.#token();
    const WebSocket = this.#options.WebSocket ?? this.#scope.WebSocket;
    if (this.#over) return;
    if (!WebSocket) throw new ConnectionEnded(0, "no WebSocket: give one as an option");
    let wire: Wire;
    try {
      this.#wire = wire = new WebSocket(url, [SUBPROTOCOL]) as Wire;
    } catch (error) {
      // What refuses the address, or the page, will do so again.
      throw new ConnectionEnded(0, String(error));
    }
    wire.onopen = (): void => {
      this.#send(this.#session.hello(token));
    };
    wire.onmessage = ({ data }): void => {
      try {
        this.#take(data);
      } catch (error) {
        this.#fail(error);
      }
    };
    wire.onclose = ({ code, reason }): void => {
      this.#finish({ code, reason });
    };
    wire.onerror = (): void => undefined; // a close follows
  }

  async #token(): Promise<string> {
    const { token } = this.#options;
    return typeof token === "string" ? token : await token();
  }

  #take(data: unknown): void {
    const frame = parse(data);
    if (!this.#welcomedAt) {
      if (frame?.type !== "welcome") throw new ProtocolError();
      this.#stop("welcome");
      this.#welcomedAt = this.#now();
      this.#ports.welcomed(this.#session.welcomed(frame));
      this.write();
    } else if (frame?.type === "welcome") {
      throw new ProtocolError();
    } else if (frame) {
      if (frame.type === "token_expiring" && typeof this.#options.token !== "string") this.#renew();
      if (frame.type === "refreshed") this.#stop("renew");
      this.#ports.frame(frame, (data as string).length);
    }
  }

  #acknowledge(): void {
    if (!this.#session.owed || this.#timers.has("ack")) return;
    const wait = this.#ackedAt + ACK_EVERY_MS - this.#now();
    if (wait > 0) {
      this.#later("ack", wait, () => {
        this.#acknowledge();
      });
      return;
    }
    this.#ackedAt = this.#now();
    this.#send(this.#session.ack());
  }

  /** Hand over a new user token, and again until it is taken. Where none is to be had, the socket ends with 4000. */
  #renew(): void {
    this.#later("renew", RENEW_MS * (1 + Math.random()), () => {
      this.#renew();
    });
    this.#token().then(
      (token) => {
        if (!this.#over && this.#timers.has("renew")) this.#send(JSON.stringify({ type: "refresh", token }));
      },
      () => undefined, // asked again
    );
  }

  #send(text: string): void {
    if (this.#wire?.readyState === OPEN) this.#wire.send(text);
  }

  #fail(error: unknown): void {
    const wire = this.#wire;
    this.#finish({ error });
    wire?.close(PROTOCOL_ERROR);
  }

  #finish(end: Omit<SocketEnd, "livedMs">): void {
    if (this.#over) return;
    this.#drop();
    this.#ports.ended({ ...end, livedMs: this.#welcomedAt && this.#now() - this.#welcomedAt });
  }

  #drop(): void {
    this.#over = true;
    for (const name of this.#timers.keys()) this.#stop(name);
    const wire = this.#wire;
    if (wire) wire.onopen = wire.onmessage = wire.onclose = null;
  }

  #now(): number {
    return this.#scope.performance.now();
  }

  #later(name: string, ms: number, action: () => void): void {
    this.#stop(name);
    const timer = this.#scope.setTimeout(() => {
      this.#timers.delete(name);
      action();
    }, ms);
    this.#timers.set(name, timer);
  }

  #stop(name: string): void {
    this.#scope.clearTimeout(this.#timers.get(name) as never);
    this.#timers.delete(name);
  }
}
