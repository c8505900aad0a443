/**
 * One connection context as its client sees it, over the subprotocol sidecar.v1.json: hello, cursor, acknowledgements,
 * renewed tokens, reconnects, messages and cancels of its own. Knows nothing of the page.
 *
 * Events, each a CustomEvent: `state` {state, text}, `welcome`, `message`, `gap`, `accepted` and `refused` (the frame),
 * and `frame` {direction, frame} for everything that crosses the socket.
 */

const SUBPROTOCOL = "sidecar.v1.json";
const BACK_OFF_BASE_MS = 500;
const BACK_OFF_CAP_MS = 20_000;
const WELCOME_TIMEOUT_MS = 15_000;
const STEADY_MS = 10_000;
const ACK_DELAY_MS = 40;
const GAVE_UP_WAITING = 3008;
const LEFT_FOR_NOW = 3001;
const FINAL_CODES = new Set([1000, 1002, 1003, 1007, 1009]);

/** Whether a client comes back after this close code. */
export const reconnectsAfter = (code) => code < 4500 && !FINAL_CODES.has(code);

/** Full jitter: anywhere between nothing and the exponential bound, so that many clients do not come back at once. */
export const backOffMs = (failures, random = Math.random) =>
  random() * Math.min(BACK_OFF_CAP_MS, BACK_OFF_BASE_MS * 2 ** failures);

export class Connection extends EventTarget {
  connectionId = "";
  isolationKey = "";
  connected = false;

  #url;
  #fetchToken;
  #socket = null;
  #wanted = false;
  #timers = new Set();
  #failures = 0;
  #steadySince = Infinity;
  #announcedDelayMs = null;
  #resume = null;
  #attempt = 0;
  #sequence = 0;
  #acknowledged = 0;
  #acknowledging = false;
  #asked = new Map();

  /** `fetchToken` gives a promise of a fresh user token; it is asked for one at every connect and refresh. */
  constructor(url, fetchToken) {
    super();
    this.#url = url;
    this.#fetchToken = fetchToken;
  }

  /** What another page needs to come back to this context, with `restore`; the token is a secret. */
  get state() {
    return { resume: this.#resume, attempt: this.#attempt, sequence: this.#sequence, asked: [...this.#asked.values()] };
  }

  /** Begin where another page was. Before `open`. */
  restore({ resume, attempt, sequence, asked }) {
    this.#resume = resume;
    this.#attempt = attempt;
    this.#sequence = sequence;
    this.#asked = new Map(asked.map((frame) => [frame.id, frame]));
  }

  /** A message to the agents. It is sent again after a cut until it is answered: its id makes that safe. */
  ask(id, event, data) {
    const frame = { type: "message", id, event, data };
    this.#asked.set(id, frame);
    if (this.connected) this.#send(frame);
  }

  /** No more of the answer to that message. */
  cancel(id) {
    this.#send({ type: "cancel", id });
  }

  open() {
    if (this.#wanted) return;
    this.#wanted = true;
    this.#failures = 0;
    this.#connect();
  }

  /** Lets go of the socket; the context waits for whoever resumes it. */
  leave() {
    this.#wanted = false;
    this.#forget();
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(LEFT_FOR_NOW);
    this.#say("closed", "left");
  }

  async #connect() {
    this.#say("connecting", "connecting");
    let token;
    try {
      token = await this.#fetchToken();
    } catch {
      if (this.#wanted) this.#retry();
      return;
    }
    if (!this.#wanted || this.#socket) return;
    const socket = new WebSocket(this.#url, [SUBPROTOCOL]);
    this.#socket = socket;
    this.#later(WELCOME_TIMEOUT_MS, () => this.connected || socket.close(GAVE_UP_WAITING));
    socket.onopen = () => this.#send(this.#hello(token));
    socket.onmessage = ({ data }) => this.#socket === socket && this.#receive(JSON.parse(data));
    socket.onclose = (event) => this.#socket === socket && this.#closed(event);
  }

  #hello(token) {
    this.#attempt += 1;
    if (!this.#resume) return { type: "hello", token };
    return { type: "hello", token, resume: { token: this.#resume, last_sequence: this.#sequence, attempt: this.#attempt } };
  }

  #receive(frame) {
    this.#tell("frame", { direction: "received", frame });
    switch (frame.type) {
      case "welcome":
        return this.#welcome(frame);
      case "message":
        return this.#advance(frame.sequence, "message", frame);
      case "gap":
        return this.#advance(frame.to, "gap", frame);
      case "accepted":
        this.#asked.delete(frame.id);
        return this.#tell("accepted", frame);
      case "token_expiring":
        return this.#refresh();
      case "draining":
        this.#announcedDelayMs = frame.reconnect_in_ms;
        return;
      case "error":
        this.#asked.delete(frame.id);
        return this.#tell("refused", frame);
      default: // what this page has no use for, such as a context token, and what comes with a later version
    }
  }

  #welcome(frame) {
    this.connectionId = frame.connection_id;
    this.isolationKey = frame.isolation_key;
    this.connected = true;
    this.#resume = frame.resume_token ?? null;
    this.#sequence = frame.sequence;
    this.#acknowledged = frame.sequence;
    this.#steadySince = performance.now() + STEADY_MS;
    // Of another context than they were asked in, they would be asked twice.
    if (frame.recovery !== "full" && frame.recovery !== "gap") this.#asked.clear();
    this.#say("connected", "connected");
    this.#tell("welcome", frame);
    for (const asked of this.#asked.values()) this.#send(asked);
  }

  #advance(sequence, type, frame) {
    this.#sequence = sequence;
    this.#tell(type, frame);
    if (this.#acknowledging) return;
    this.#acknowledging = true;
    this.#later(ACK_DELAY_MS, () => {
      this.#acknowledging = false;
      if (this.#sequence > this.#acknowledged) this.#send({ type: "ack", sequence: this.#sequence });
      this.#acknowledged = this.#sequence;
    });
  }

  async #refresh() {
    const socket = this.#socket;
    try {
      const token = await this.#fetchToken();
      if (this.#socket === socket) this.#send({ type: "refresh", token });
    } catch {
      // The socket then ends with 4000 and the reconnect asks for a token again.
    }
  }

  #closed({ code, reason }) {
    this.#forget();
    this.#socket = null;
    this.#tell("frame", { direction: "received", frame: { type: "close", code, reason } });
    if (reconnectsAfter(code)) return this.#retry();
    this.#wanted = false;
    this.#resume = null;
    this.#say("closed", `closed: ${code} ${reason}`.trim());
  }

  #retry() {
    if (performance.now() > this.#steadySince) this.#failures = 0;
    const delay = this.#announcedDelayMs ?? backOffMs(this.#failures);
    this.#failures += 1;
    this.#announcedDelayMs = null;
    this.#steadySince = Infinity;
    this.#say("waiting", `reconnecting in ${(delay / 1000).toFixed(1)} s`);
    this.#later(delay, () => this.#connect());
  }

  /** No timer outlives the socket it was set for. */
  #forget() {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    this.#acknowledging = false;
    this.connected = false;
  }

  #later(delayMs, action) {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      action();
    }, delayMs);
    this.#timers.add(timer);
  }

  #send(frame) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#socket.send(JSON.stringify(frame));
    this.#tell("frame", { direction: "sent", frame });
  }

  #say(state, text) {
    this.#tell("state", { state, text });
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
