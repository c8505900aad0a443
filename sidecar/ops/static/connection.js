/**
 * One connection context as the page needs it, over the project's own client for browsers: everything that crosses the
 * socket is told, and another page can go on where this one was. Knows nothing of the page.
 *
 * Events, each a CustomEvent: `state` {state, text}, `welcome` {connectionId, isolationKey, recovery}, `message` and `gap`
 * (as the client gives them), `refused` {id, reason}, and `frame` {direction, frame} for what crosses the socket.
 */

import { TransportError, connect } from "./ws-sidecar.min.js";

/** The longest that a timer can wait: a question waits for the sidecar's answer as long as its page does. */
const AS_LONG_AS_THE_PAGE_MS = 2 ** 31 - 1;

/**
 * The page's own surroundings, but for its network: a sidecar on this machine is there though the browser be offline,
 * and there is no reason then to wait for longer.
 */
const SURROUNDINGS = {
  document,
  performance,
  Date,
  setTimeout: (action, delayMs) => setTimeout(action, delayMs),
  clearTimeout: (timer) => clearTimeout(timer),
};

/** Whether the context went on: what was asked in it may be asked again, for its ids are known there. */
const isResumed = (recovery) => recovery === "full" || recovery === "gap";

const describe = (state, { waitMs, code, reason }) => {
  if (waitMs !== undefined) return `reconnecting in ${(waitMs / 1000).toFixed(1)} s`;
  if (state !== "closed") return state;
  return code === undefined ? "left" : `closed: ${code} ${reason}`.trim();
};

/** The browser's WebSocket, which tells besides of each frame and close before it is dealt with. */
const overheard = (tell) =>
  class extends WebSocket {
    constructor(url, protocols) {
      super(url, protocols);
      this.addEventListener("message", ({ data }) => tell("received", JSON.parse(data)));
      this.addEventListener("close", ({ code, reason }) => tell("received", { type: "close", code, reason }));
    }

    send(text) {
      super.send(text);
      tell("sent", JSON.parse(text));
    }

    close(code) {
      if (this.readyState === WebSocket.OPEN) tell("sent", { type: "close", code, reason: "" });
      super.close(code);
    }
  };

export class Connection extends EventTarget {
  #url;
  #fetchToken;
  #client = null;
  #resume = null;
  #asked = new Map();

  /** `fetchToken` gives a promise of a fresh user token; it is asked for one at every connect and refresh. */
  constructor(url, fetchToken) {
    super();
    this.#url = url;
    this.#fetchToken = fetchToken;
  }

  get connected() {
    return this.#client?.state === "connected";
  }

  /** Begin where another page was: with what its `leave` gave. Before `open`. */
  restore({ resume, asked }) {
    this.#resume = resume;
    this.#asked = new Map(asked);
  }

  open() {
    if (this.#client) return;
    const client = connect(this.#url, {
      token: this.#fetchToken,
      resume: this.#resume,
      WebSocket: overheard((direction, frame) => this.#tell("frame", { direction, frame })),
      tuning: { scope: SURROUNDINGS },
      onState: (state, detail) => {
        this.#tell("state", { state, text: describe(state, detail) });
        if (state === "connected") this.#tell("welcome", client);
      },
    });
    this.#client = client;
    this.#askAgain(client);
    this.#read(client);
  }

  /** Lets go of the socket; the context waits for whoever comes with what this gives. It holds a secret. */
  leave() {
    this.#resume = this.#client?.detach() ?? null;
    this.#client = null;
    return { resume: this.#resume, asked: [...this.#asked] };
  }

  /** A message to the agents. The client sends it again after a cut until it is answered: its id makes that safe. */
  async ask(id, event, data) {
    this.#asked.set(id, { event, data });
    try {
      await this.#client.send(data, { id, event, timeoutMs: AS_LONG_AS_THE_PAGE_MS });
    } catch (error) {
      // Left or replaced: nobody has answered, and whoever has the context next may ask again.
      if (error instanceof TransportError) return;
      this.#tell("refused", { id, reason: error.reason });
    }
    this.#asked.delete(id);
  }

  /** No more of the answer to that message. */
  cancel(id) {
    this.#client.cancel({ id });
  }

  /** What a page before this one asked and had no answer to. In another context it would be asked twice. */
  async #askAgain(client) {
    try {
      await client.opened;
    } catch {
      return; // it ended before, which its state tells
    }
    if (!isResumed(client.recovery)) this.#asked.clear();
    for (const [id, { event, data }] of this.#asked) this.ask(id, event, data);
  }

  async #read(client) {
    try {
      for await (const event of client) {
        if (event.kind === "replaced") this.#asked.clear();
        else this.#tell(event.kind, event);
      }
    } catch {
      // The state tells how it ended.
    }
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
