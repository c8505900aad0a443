/** The user's side: one connection to a sidecar that comes back by itself, resumes, and loses and doubles nothing. */

import { BackOff, CAP_MS } from "./back-off.js";
import { ConnectionEnded, SidecarError, StreamFailed, TransportError } from "./errors.js";
import { cancelText, messageText } from "./frames.js";
import type { Frame } from "./frames.js";
import { Reader } from "./reader.js";
import { Replies } from "./replies.js";
import type { ReplyStream } from "./replies.js";
import { Session } from "./session.js";
import { Socket } from "./socket.js";
import type { SocketEnd } from "./socket.js";
import { offline, watch } from "./surroundings.js";
import type {
  Accepted,
  ConnectOptions,
  Event,
  Limits,
  ResumeState,
  Scope,
  SendOptions,
  State,
  StateDetail,
} from "./types.js";

const OVERLOADED = 1013;
const NORMAL = 1000;
/** How a socket is left whose context is to wait. Not 1001, which browsers do not let a page say. */
const LEFT = 3001;
const FINAL = new Set([1000, 1002, 1003, 1007, 1009]);
/** A socket that lived so long was a success: the back-off begins again. One that is closed at once is none. */
const STABLE_MS = 5_000;
const LEFT_TEXT = "the connection has ended";
const TIMEOUT_MS = 30_000;

/**
 * Connect as a user. `url`: ws:// or wss://…/v1/connect. Returns at once; what is sent before the first welcome waits for
 * it. Nothing is thrown into the page: what ends the connection is thrown by the iterators, by `opened` and by `send`.
 */
export function connect(url: string, options: ConnectOptions): Connection {
  return new Connection(url, options);
}

/** A user's connection, over as many sockets as it takes. Read it with `for await`. */
export class Connection implements AsyncIterable<Event> {
  /** Resolves with the first welcome. Rejects with what ended the connection before. */
  readonly opened: Promise<void>;
  #welcomeCame: (() => void) | undefined;
  #noneWillCome: ((error: unknown) => void) | undefined;
  #state: State = "connecting";
  readonly #scope: Scope;
  readonly #session: Session;
  readonly #events: Reader<Event>;
  readonly #replies: Replies;
  readonly #backOff: BackOff;
  readonly #unwatch: () => void;
  #socket: Socket | undefined;
  #end: { readonly error: ConnectionEnded | undefined } | undefined;
  #retry: (() => void) | undefined;
  /** Until then no new socket whatever happens: the sidecar asked for it. */
  #notBefore = 0;

  readonly #url: string;
  readonly #options: ConnectOptions;

  constructor(url: string, options: ConnectOptions) {
    this.#url = url;
    this.#options = options;
    const { tuning = {}, acknowledge = true, resume } = options;
    this.#scope = tuning.scope ?? globalThis;
    this.#session = new Session(
      resume,
      acknowledge,
      tuning.maxEvents ?? 4096,
      tuning.maxBuffered ?? 8_388_608,
      () => {
        this.#moved();
      },
      options.onResume,
    );
    this.#events = new Reader(this.#session);
    this.#replies = new Replies(this.#session, {
      cancel: (reply) => {
        // What was never said needs no taking back.
        if (reply.replyTo && this.#session.unsaid(reply.replyTo)) return;
        this.cancel(reply.replyTo ? { id: reply.replyTo } : { streamId: reply.streamId });
      },
      later: (action, ms) => this.#later(action, ms),
    });
    this.#backOff = new BackOff(tuning.random ?? Math.random);
    this.opened = new Promise((resolve, reject) => {
      this.#welcomeCame = resolve;
      this.#noneWillCome = reject;
    });
    this.opened.catch(() => undefined); // nobody has to look at it
    this.#unwatch = watch(this.#scope, {
      online: () => {
        this.#hasten(true);
      },
      visible: (long) => {
        this.#hasten(long);
      },
    });
    this.#dial();
  }

  // What is known

  get state(): State {
    return this.#state;
  }

  /** Names the context; changes with a `replaced` event. "" before the first welcome. */
  get connectionId(): string {
    return this.#session.connectionId;
  }

  /** Names the context to services. */
  get isolationKey(): string {
    return this.#session.welcome?.isolation_key ?? "";
  }

  /** Opens the context to a service; a secret. Renewed by the sidecar: read it each time. */
  get contextToken(): string {
    return this.#session.welcome?.context_token ?? "";
  }

  /** In Unix seconds. */
  get contextTokenExpiresAt(): number {
    return this.#session.welcome?.context_token_expires_at ?? 0;
  }

  /** What the last welcome said: `new`, `full`, `gap` or `denied`; "" before the first. */
  get recovery(): string {
    return this.#session.welcome?.recovery ?? "";
  }

  get limits(): Limits | undefined {
    return this.#session.welcome?.limits;
  }

  /** What a later `connect(…, { resume })` needs; null before the first welcome. */
  get resumeState(): ResumeState | null {
    return this.#session.resumeState;
  }

  // Coming and going

  /** Say that this user is done: ends the context, unless there is no socket to say it on. Idempotent. */
  close(): void {
    this.#leave(NORMAL);
  }

  /**
   * Leave without ending the context, which waits for `limits.resume_window_s`; what it takes to come back. What was read
   * ahead and not dealt with is sent again then.
   */
  detach(): ResumeState | null {
    this.#leave(LEFT);
    return this.resumeState;
  }

  #leave(code: number): void {
    if (this.#end) return;
    this.#socket?.leave(code);
    this.#finish(undefined, code === NORMAL);
  }

  // What comes

  /** The events that no `ask` and no `streams` takes, in order; one consumer. Throws what ended the connection. */
  [Symbol.asyncIterator](): AsyncIterator<Event> {
    // A loop that is left may be entered again.
    return { next: () => this.#events.next() };
  }

  /** The response streams that no `ask` takes, as they arrive. Until it is called, their parts are events. */
  streams(): AsyncIterableIterator<ReplyStream> {
    const streams = this.#replies.arrivals;
    if (this.#end) streams.end(this.#end.error);
    return streams;
  }

  /** Everything that was handed out, up to that event, is dealt with. Idempotent; for `acknowledge: false`. */
  acknowledge(upTo?: Event): void {
    this.#session.acknowledge(upTo);
  }

  // What goes

  /**
   * Send one message to the agents; resolves when the sidecar has accepted it. Asked again with the same id on a resumed
   * socket. Rejects with the sidecar's refusal, a SidecarError by its `reason`, and with TransportError when the time is
   * over or the context was replaced: it may have been taken then.
   */
  send(data: unknown, options: SendOptions = {}): Promise<Accepted> {
    return this.#send(options.id ?? newId(), data, options);
  }

  /**
   * Send one message and read the answer to it: `for await (const part of connection.ask("…"))`. Asked with an id whose
   * answer is under way, such as after a reload, it goes on with what was not dealt with. `signal` ends it, and cancels.
   */
  ask(data: unknown, options: SendOptions = {}): ReplyStream {
    const id = options.id ?? newId();
    const reply = this.#replies.expect(id, options.signal);
    this.#send(id, data, options).catch((error: unknown) => {
      reply.fail(error);
    });
    return reply;
  }

  /** Say that a stream, or the answer to a message of one's own, is no longer wanted. Not answered. */
  cancel(what: { id?: string; streamId?: string }): void {
    this.#session.cancel(cancelText(what));
    this.#moved();
  }

  #send(id: string, data: unknown, { event, signal, timeoutMs = TIMEOUT_MS }: SendOptions): Promise<Accepted> {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      if (this.#end) throw this.#end.error ?? new TransportError(LEFT_TEXT, true);
      const giveUp = (error: unknown): void => {
        forget();
        settled();
        // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- may be the caller's abort reason
        reject(error);
      };
      const abort = (): void => {
        giveUp(signal?.reason);
      };
      const forget = this.#session.ask(id, messageText(id, event, data), (result) => {
        settled();
        if (result instanceof SidecarError) reject(result);
        else resolve(result);
      });
      const stop = this.#later(() => {
        giveUp(new TransportError("no answer in time", this.#session.unsaid(id)));
      }, timeoutMs);
      const settled = (): void => {
        stop();
        signal?.removeEventListener("abort", abort);
      };
      signal?.addEventListener("abort", abort);
      this.#moved();
    });
  }

  // The sockets

  #dial(): void {
    this.#say("connecting");
    this.#socket = new Socket(this.#url, this.#options, this.#scope, this.#session, {
      welcomed: (event) => {
        this.#welcomed(event);
      },
      frame: (frame, size) => {
        this.#take(frame, size);
      },
      ended: (end) => {
        this.#ended(end);
      },
    });
  }

  #welcomed(event: Event | undefined): void {
    if (event?.kind === "replaced") {
      this.#replies.fail(new StreamFailed("REPLACED"), (id) => this.#session.unsaid(id));
    }
    if (event) this.#give(event);
    this.#welcomeCame?.();
    this.#say("connected");
  }

  #take(frame: Frame, size: number): void {
    switch (frame.type) {
      case "message":
      case "gap": {
        const event = this.#session.take(frame, size);
        if (event) this.#give(event);
        if (this.#session.fullness >= 1) this.#pause();
        break;
      }
      case "accepted":
        this.#session.answer(frame.id, { id: frame.id, duplicate: frame.duplicate === true });
        break;
      case "error": {
        const definite = frame.reason !== "OUTCOME_UNKNOWN" && frame.reason !== "INTERNAL";
        if (frame.id) this.#session.answer(frame.id, new SidecarError(frame.reason, frame.message ?? "", definite));
        break;
      }
      case "context_token":
        this.#session.renewed(frame.context_token, frame.expires_at);
        break;
      case "draining":
        this.#notBefore = this.#now() + frame.reconnect_in_ms;
    }
  }

  #give(event: Event): void {
    if (event.kind === "message" && this.#replies.take(event)) return;
    if (event.kind === "gap") this.#replies.doubt();
    if (this.#options.events === false) this.#session.letGo(event);
    else this.#events.push(event);
  }

  #ended({ code, reason, error, livedMs }: SocketEnd): void {
    this.#socket = undefined;
    if (error instanceof ConnectionEnded) {
      this.#finish(error, true);
    } else if (code !== undefined && (code >= 4500 || FINAL.has(code))) {
      this.#finish(new ConnectionEnded(code, reason ?? ""), true);
    } else {
      if (livedMs >= STABLE_MS) this.#backOff.reset();
      const asked = this.#notBefore - this.#now();
      // Where the sidecar drains, it has spread its clients itself.
      let waitMs = asked > 0 ? asked : this.#backOff.next();
      if (code === OVERLOADED) waitMs += 1000;
      if (offline(this.#scope)) waitMs = Math.max(waitMs, CAP_MS);
      this.#wait("waiting", { waitMs, code, reason, error });
    }
  }

  /**
   * The consumers do not keep up, and a browser cannot stop reading: leave the socket, and with it the messages in the
   * sidecar's outbox, which refuses services more than it can hold. Back once half is taken, or to keep the context.
   */
  #pause(): void {
    this.#socket?.leave(LEFT);
    this.#socket = undefined;
    this.#wait("paused", { waitMs: ((this.limits?.resume_window_s ?? 0) * 1000) / 2 });
  }

  #wait(state: State, detail: StateDetail & { waitMs: number }): void {
    this.#retry = this.#later(() => {
      this.#dial();
    }, detail.waitMs);
    this.#say(state, detail);
  }

  /** Connect now rather than later; `anew`: also where a socket seems to live. */
  #hasten(anew: boolean): void {
    if (this.#now() < this.#notBefore || !(this.#state === "waiting" || (anew && this.#socket))) return;
    this.#socket?.leave(LEFT);
    this.#retry?.();
    this.#dial();
  }

  /** The position moved, there is room again, or something is to be said. */
  #moved(): void {
    if (this.#end) return;
    if (this.#state === "paused" && this.#session.fullness <= 0.5) {
      this.#retry?.();
      this.#dial();
    }
    this.#socket?.write();
  }

  #finish(error: ConnectionEnded | undefined, forget: boolean): void {
    this.#end = { error };
    this.#retry?.();
    this.#unwatch();
    this.#socket = undefined;
    const why = error ?? new TransportError(LEFT_TEXT, false);
    this.#session.failQuestions(LEFT_TEXT);
    this.#replies.fail(why);
    this.#replies.end(error);
    this.#events.end(error);
    this.#noneWillCome?.(why);
    if (forget) this.#session.forget();
    const { code, reason } = error ?? {};
    this.#say("closed", { code, reason, error });
  }

  #say(state: State, detail: StateDetail = {}): void {
    this.#state = state;
    const { onState } = this.#options;
    // What it throws is the page's own to see, and breaks nothing here.
    if (onState) {
      queueMicrotask(() => {
        onState(state, detail);
      });
    }
  }

  #now(): number {
    return this.#scope.performance.now();
  }

  #later(action: () => void, ms: number): () => void {
    const timer = this.#scope.setTimeout(action, ms);
    return () => {
      this.#scope.clearTimeout(timer as never);
    };
  }
}

// Not randomUUID, which a page without https does not have.
const newId = (): string => crypto.getRandomValues(new Uint32Array(4)).join("-");
