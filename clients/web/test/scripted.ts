/** A sidecar that says what a test tells it to, a scope whose time and network are a test's, and a client of both. */

import assert from "node:assert/strict";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";
import { WebSocket, WebSocketServer } from "ws";
import { connect } from "../src/index.js";
import type { ConnectOptions, Connection, Event, ReplyStream, Scope, State, StateDetail, WebSocketConstructor } from "../src/index.js";

export type Members = Record<string, unknown>;

/** What came and was not asked for yet; who asks waits for it. */
export class Inbox<T> {
  readonly #items: T[] = [];
  readonly #waiting: ((item: T) => void)[] = [];

  put(item: T): void {
    const next = this.#waiting.shift();
    if (next) next(item);
    else this.#items.push(item);
  }

  get size(): number {
    return this.#items.length;
  }

  async take(): Promise<T> {
    const item = this.#items.shift();
    return item ?? within(new Promise((resolve) => this.#waiting.push(resolve)));
  }
}

/** The promise's outcome, or a failure that says so when it takes too long. */
export async function within<T>(promise: Promise<T>, ms = 3_000): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new Error("it did not come in time"));
    }, ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** The server's end of one socket. */
export class Peer {
  readonly #frames = new Inbox<Members>();
  readonly closed: Promise<number>;

  constructor(readonly socket: WebSocket) {
    socket.on("message", (data: Buffer) => {
      this.#frames.put(JSON.parse(data.toString()) as Members);
    });
    this.closed = new Promise((resolve) => socket.on("close", resolve));
  }

  frame(): Promise<Members> {
    return this.#frames.take();
  }

  /** The next frame of that type; what comes before it is passed over. */
  async said(type: string): Promise<Members> {
    for (;;) {
      const frame = await this.frame();
      if (frame["type"] === type) return frame;
    }
  }

  /** How many frames came that nobody asked for. */
  get unread(): number {
    return this.#frames.size;
  }

  say(...frames: (Members | string)[]): void {
    for (const frame of frames) this.socket.send(typeof frame === "string" ? frame : JSON.stringify(frame));
  }

  /** Read hello and answer it; what hello was. */
  async welcome(members: Members = {}): Promise<Members> {
    const hello = await this.frame();
    assert.equal(hello["type"], "hello");
    this.say(welcome(members));
    return hello;
  }
}

export const welcome = (members: Members = {}): Members => ({
  type: "welcome",
  connection_id: "c-1",
  session_id: "s-1",
  attach_id: "a-1",
  isolation_key: "key-1",
  context_token: "context-token-1",
  context_token_expires_at: 2_000_000_000,
  resume_token: "resume-1",
  recovery: "new",
  sequence: 0,
  limits: { max_message_bytes: 262_144, max_inbound_bytes: 65_536, idle_timeout_s: 1800, resume_window_s: 120 },
  ...members,
});

export const message = (sequence: number, members: Members = {}): Members => ({
  type: "message",
  sequence,
  id: `m-${sequence}`,
  content_type: "json",
  data: sequence,
  ...members,
});

/** The `index`-th part of an answer. */
export const part = (sequence: number, index: number, members: Members = {}, stream: Members = {}): Members =>
  message(sequence, { stream: { id: "answer", index, state: "open", ...stream }, ...members });

/** A network and a page of a test's own; its time stands still until it is moved. */
export class World implements Scope {
  readonly WebSocket = WebSocket as unknown as WebSocketConstructor;
  readonly navigator = { onLine: true };
  readonly document: Scope["document"] & { visibilityState: string };
  readonly #listeners = new Map<string, Set<() => void>>();
  readonly #timers = new Map<number, { at: number; action: () => void }>();
  #now = 1_000;
  #made = 0;

  constructor() {
    this.document = {
      visibilityState: "visible",
      addEventListener: this.addEventListener,
      removeEventListener: this.removeEventListener,
    };
  }

  readonly Date = { now: (): number => this.#now };
  readonly performance = { now: (): number => this.#now };

  readonly addEventListener = (type: string, listener: () => void): void => {
    this.#listeners.set(type, (this.#listeners.get(type) ?? new Set()).add(listener));
  };

  readonly removeEventListener = (type: string, listener: () => void): void => {
    this.#listeners.get(type)?.delete(listener);
  };

  get listening(): number {
    return [...this.#listeners.values()].reduce((sum, each) => sum + each.size, 0);
  }

  readonly setTimeout = (action: () => void, ms: number): number => {
    this.#timers.set(++this.#made, { at: this.#now + ms, action });
    return this.#made;
  };

  readonly clearTimeout = (timer: number | undefined): void => {
    if (timer !== undefined) this.#timers.delete(timer);
  };

  /** How long each timer has to go. */
  get timers(): number[] {
    return [...this.#timers.values()].map(({ at }) => at - this.#now).sort((a, b) => a - b);
  }

  /** Let so much time pass; what is due happens, in its order. */
  pass(ms: number): void {
    const until = this.#now + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, { at }]) => at <= until).sort(([, a], [, b]) => a.at - b.at)[0];
      if (!due) break;
      this.#timers.delete(due[0]);
      this.#now = Math.max(this.#now, due[1].at);
      due[1].action();
    }
    this.#now = until;
  }

  tell(type: string): void {
    for (const listener of this.#listeners.get(type) ?? []) listener();
  }

  look(visibilityState: "visible" | "hidden"): void {
    this.document.visibilityState = visibilityState;
    this.tell("visibilitychange");
  }

  network(onLine: boolean): void {
    this.navigator.onLine = onLine;
    this.tell(onLine ? "online" : "offline");
  }
}

/** What the next part of an answer says. */
export async function nextOf(reply: ReplyStream): Promise<unknown> {
  const next = await within(reply.next());
  assert.ok(next.done !== true, "the answer is over");
  return next.value.data;
}

/** A client whose sockets are a test's. */
export class Stage {
  readonly peers = new Inbox<Peer>();
  readonly states = new Inbox<readonly [State, StateDetail]>();
  readonly world = new World();
  #connection: Connection | undefined;
  #events: AsyncIterator<Event> | undefined;

  constructor(readonly url: string) {}

  /** `real`: with the time and the timers of this machine. */
  connect(options: Partial<ConnectOptions> = {}, real = false): Connection {
    const { tuning, ...rest } = options;
    this.#connection = connect(this.url, {
      token: "token",
      onState: (state, detail) => {
        this.states.put([state, detail]);
      },
      WebSocket,
      tuning: { random: () => 0, ...(!real && { scope: this.world }), ...tuning },
      ...rest,
    });
    this.#events = this.#connection[Symbol.asyncIterator]();
    return this.#connection;
  }

  /** Connected, and the server's end of it. */
  async connected(options: Partial<ConnectOptions> = {}, real = false): Promise<[Connection, Peer]> {
    const connection = this.connect(options, real);
    const peer = await this.peers.take();
    await peer.welcome();
    await within(connection.opened);
    return [connection, peer];
  }

  /** The next event, in the order of the connection's own iterator. */
  async event(): Promise<Event> {
    const next = await within(this.#events?.next() ?? Promise.reject(new Error("not connected")));
    assert.ok(next.done !== true, "the connection was left");
    return next.value;
  }

  async data(): Promise<unknown> {
    const event = await this.event();
    assert.equal(event.kind, "message");
    return event.data;
  }

  /** What is said once the state is that. */
  async until(state: State): Promise<StateDetail> {
    for (;;) {
      const [now, detail] = await this.states.take();
      if (now === state) return detail;
    }
  }

  /** The socket that comes after a wait of the world's. */
  async again(ms = 0): Promise<Peer> {
    await this.until("waiting");
    this.world.pass(ms);
    return this.peers.take();
  }

  close(): void {
    this.#connection?.close();
  }
}

/** A stage for one test, with a server on a port of its own. */
export async function stage(t: TestContext): Promise<Stage> {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0, handleProtocols: () => "sidecar.v1.json" });
  await once(server, "listening");
  const made = new Stage(`ws://127.0.0.1:${(server.address() as AddressInfo).port}/v1/connect`);
  server.on("connection", (socket) => {
    made.peers.put(new Peer(socket));
  });
  t.after(() => {
    made.close();
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  return made;
}
