/** What a connection hands out, and what it is given. */

/** A message's place in a response stream. `index` rises by one from 0. */
export interface StreamChunk {
  readonly id: string;
  readonly index: number;
  readonly state: "open" | "end" | "error";
}

/** One message. `data` is the JSON value, a string for `text`, a Uint8Array for `binary`. */
export interface Message {
  readonly kind: "message";
  /** Rises by one from message to message of one `connectionId`; what is missing is said by a {@link Gap}. */
  readonly sequence: number;
  readonly id: string;
  /** What kind of message, as the service names it; "" if it does not. */
  readonly event: string;
  readonly contentType: "json" | "text" | "binary";
  readonly data: unknown;
  readonly critical: boolean;
  /** The id of your message that this answers; "" if none. */
  readonly replyTo: string;
  readonly stream: StreamChunk | undefined;
  readonly headers: Readonly<Record<string, string>>;
  readonly connectionId: string;
}

/** In the place of the messages `first` to `last`, which could not be kept. */
export interface Gap {
  readonly kind: "gap";
  readonly first: number;
  readonly last: number;
  /** `expired`, `evicted`, `acknowledged` or `lost`. */
  readonly reason: string;
  readonly connectionId: string;
}

/** The context could not be resumed and this is a fresh one: key and token are new, its sequence begins again. */
export interface Replaced {
  readonly kind: "replaced";
  readonly connectionId: string;
  readonly isolationKey: string;
}

export type Event = Message | Gap | Replaced;

/**
 * What it takes to come back to a context, together with a token of the same user. A secret. `lastSequence`: what was
 * dealt with; `attempt`: the highest that was said.
 */
export interface ResumeState {
  readonly token: string;
  readonly lastSequence: number;
  readonly attempt: number;
}

/** What the sidecar said in its welcome: sizes in bytes, times in seconds. */
export interface Limits {
  readonly max_message_bytes: number;
  readonly max_inbound_bytes: number;
  readonly idle_timeout_s: number;
  readonly resume_window_s: number;
}

/**
 * `connecting`; `connected`: welcomed; `waiting`: before the next try; `paused`: before the next try, for a consumer that
 * does not keep up; `closed`: for good, by you or by the sidecar.
 */
export type State = "connecting" | "connected" | "waiting" | "paused" | "closed";

/** Why the state is what it is: a close code and its text, what your token function threw, how long the wait is. */
export interface StateDetail {
  readonly code?: number | undefined;
  readonly reason?: string | undefined;
  readonly error?: unknown;
  readonly waitMs?: number | undefined;
}

/** The sidecar has the message. `duplicate`: it had it before. */
export interface Accepted {
  readonly id: string;
  readonly duplicate: boolean;
}

export interface SendOptions {
  /** What kind of message; `message` if absent. */
  readonly event?: string;
  /** An identifier of your own; made up if absent. The same id is the same message, the last 1,024 of a context. */
  readonly id?: string;
  /** Aborted, nobody waits any more; a message that was written may have been taken. */
  readonly signal?: AbortSignal;
  /** For the sidecar's answer, in milliseconds, cuts included; 30,000 if absent. */
  readonly timeoutMs?: number;
}

/** What of a WebSocket is used; a browser's, Node's and that of `ws` all are such. */
export type WebSocketConstructor = new (
  url: string,
  protocols: string[],
) => { send(data: string): void; close(code?: number): void };

/** The parts of `globalThis` that are used, where they are there. */
export interface Scope {
  readonly WebSocket?: WebSocketConstructor;
  readonly navigator?: { readonly onLine?: boolean };
  readonly document?: Listening & { readonly visibilityState: string };
  readonly addEventListener?: Listening["addEventListener"];
  readonly removeEventListener?: Listening["removeEventListener"];
  setTimeout(action: () => void, ms: number): unknown;
  clearTimeout(timer: never): void;
  readonly Date: { now(): number };
  /** Monotonic. */
  readonly performance: { now(): number };
}

interface Listening {
  addEventListener(type: string, listener: () => void): void;
  removeEventListener(type: string, listener: () => void): void;
}

/** What hardly anybody changes. */
export interface Tuning {
  /** Read ahead of the consumers at most: so many messages, 4,096. */
  readonly maxEvents?: number;
  /** Read ahead of the consumers at most: so many characters of frames, 8 Mi. */
  readonly maxBuffered?: number;
  /** Written at most, 50; keep it below the sidecar's `websocket.frames_per_second`. */
  readonly framesPerSecond?: number;
  /** Written at most, 524,288; keep it below the sidecar's `websocket.bytes_per_second`. */
  readonly bytesPerSecond?: number;
  /** The randomness of the back-off: numbers of [0, 1). */
  readonly random?: () => number;
  /** In the place of `globalThis`. */
  readonly scope?: Scope;
}

export interface ConnectOptions {
  /**
   * The user token, or what gives one: asked at each connect and before the old one ends. Throwing, it is asked again
   * after a wait; with a `ConnectionEnded` thrown the connection ends.
   */
  readonly token: string | (() => string | Promise<string>);
  /** A `resumeState` from before: of another page load, another process. */
  readonly resume?: ResumeState | null | undefined;
  /** Called with each new `resumeState`, before it is used; with null once there is nothing to come back to. */
  readonly onResume?: (state: ResumeState | null) => void;
  readonly onState?: (state: State, detail: StateDetail) => void;
  /** True: asking for the next event says that the one before was dealt with. False: say so with `acknowledge`. */
  readonly acknowledge?: boolean;
  /** False: nobody will read the connection itself, only `ask` and `streams`; what is for neither is let go. */
  readonly events?: boolean;
  /** Where `globalThis` has none: Node 20, with the one of `ws`. */
  readonly WebSocket?: WebSocketConstructor;
  readonly tuning?: Tuning;
}
