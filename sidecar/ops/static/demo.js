/** The demo page: a conversation with the agent, a send with the wrong token, and a log of what crossed the socket. */

import { Connection } from "./connection.js";
import { Conversation } from "./conversation.js";
import { element, followTheEnd, make } from "./elements.js";
import { Tabs } from "./tabs.js";

const IDENTIFIER = /^[A-Za-z0-9_.:@|-]{1,128}$/;
const HUES = { alice: 175, bob: 55 };
const MAX_LOG_ROWS = 300;
const VERDICT_TIMEOUT_MS = 10_000;
const SUGGESTIONS = [
  "Why can nobody else see this answer?",
  "What is a context token?",
  "What happens if I reload the page now?",
  "What happens when I press stop?",
];

const shorten = (text) => (text.length > 10 ? `${text.slice(0, 8)}…` : text);
const capitalise = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const fetchJson = async (url, options) => {
  const response = await fetch(url, options);
  const body = await response.json();
  return { ok: response.ok, body };
};

/** A user token from the development site; a real page has it from its identity provider. */
const mintUserToken = async (user) => {
  const headers = { "Content-Type": "application/json" };
  const { ok, body } = await fetchJson("/dev/token", { method: "POST", headers, body: JSON.stringify({ sub: user }) });
  if (!ok) throw new Error(body.error);
  return body.token;
};

/** Asks the agent to send to another key, by the same socket as everything else; its answer is a verdict. */
class Attacks {
  #connection;
  #waiting = new Map();

  constructor(connection) {
    this.#connection = connection;
  }

  try(victimKey) {
    const id = `a-${crypto.randomUUID()}`;
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve);
      setTimeout(() => this.verdict(id, { code: "UNREACHABLE", reason: "the demo agent does not answer" }), VERDICT_TIMEOUT_MS);
      this.#connection.ask(id, "attack", { victim_isolation_key: victimKey });
    });
  }

  /** False when nobody waits for it. */
  verdict(id, verdict) {
    this.#waiting.get(id)?.(verdict);
    return this.#waiting.delete(id);
  }
}

/** What crossed the socket, a line each. Tokens are never shown. */
class Log {
  #view = element("log");

  add(direction, frame) {
    const row = make("li", "", "", { "data-type": frame.type, "data-direction": direction });
    row.append(
      make("span", "arrow", direction === "sent" ? "↑" : "↓", { "aria-hidden": "true" }),
      make("span", "visually-hidden", direction),
      make("b", "", frame.type),
      make("span", "members", this.#describe(frame)),
    );
    this.#view.append(row);
    if (this.#view.children.length > MAX_LOG_ROWS) this.#view.firstElementChild.remove();
  }

  #describe(frame) {
    switch (frame.type) {
      case "hello":
        return frame.resume ? `user token · resume from ${frame.resume.last_sequence}` : "user token";
      case "welcome":
        return `${frame.recovery} · connection ${shorten(frame.connection_id)} · key ${shorten(frame.isolation_key)} · context token`;
      case "message":
        if (frame.sequence === undefined) return `${frame.event} ${this.#said(frame.data)}`;
        return `${frame.sequence} ${frame.event ?? ""} ${this.#chunk(frame.stream)}${frame.data === null ? "" : JSON.stringify(frame.data)}`;
      case "accepted":
      case "cancel":
        return shorten(frame.id);
      case "gap":
        return `${frame.from}–${frame.to} ${frame.reason}`;
      case "close":
        return `${frame.code} ${frame.reason}`;
      case "error":
        return `${frame.reason} ${frame.message ?? ""}`;
      default:
        return String(frame.sequence ?? frame.expires_at ?? frame.reconnect_in_ms ?? "");
    }
  }

  #said({ question, victim_isolation_key: key }) {
    return question === undefined ? `key ${shorten(key)}` : JSON.stringify(question);
  }

  #chunk(stream) {
    return stream ? `[${stream.index} ${stream.state}] ` : "";
  }
}

/** The card from which this tab tries to reach another one's context with its own token. */
class AttackCard {
  #tabs;
  #user;
  #attacks;
  #edited = false;

  constructor(user, tabs, attacks) {
    this.#user = user;
    this.#tabs = tabs;
    this.#attacks = attacks;
    tabs.addEventListener("change", () => this.#offer());
    element("attack-key").addEventListener("input", () => {
      this.#edited = element("attack-key").value !== "";
      this.#offer();
    });
    element("attack").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#offer();
  }

  #offer() {
    const { victim } = this.#tabs;
    const me = capitalise(this.#user);
    const name = victim && (victim.user === this.#user ? `${me}’s other context` : capitalise(victim.user));
    element("attack-story").textContent = victim
      ? `An isolation key names where a message goes; it is no secret. This is the key of ${name}. Let ${me}’s token try to send to it.`
      : `An isolation key names where a message goes; it is no secret. No other tab is open, so this one is made up. Let ${me}’s token try to send to it: the answer is the same.`;
    if (this.#edited) {
      element("attack-source").textContent = "a key that you entered";
      return;
    }
    element("attack-key").value = victim?.key ?? this.#randomKey();
    element("attack-source").textContent = victim ? `told by the tab of ${name}` : "a random key, which nobody has";
  }

  #randomKey() {
    const bytes = crypto.getRandomValues(new Uint8Array(32));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  async #send() {
    const result = element("attack-result");
    const key = element("attack-key").value.trim();
    result.replaceChildren(make("p", "hint", "asking the agent…"));
    const { code, reason } = await this.#attacks.try(key);
    const delivered = code === "OK";
    const verdict = make("div", delivered ? "verdict ok" : "verdict");
    verdict.append(
      make("p", "visually-hidden", "The sidecar answered:"),
      make("p", "code mono", code, { "data-testid": "attack-code" }),
      make("p", "reason mono", reason, { "data-testid": "attack-reason" }),
      make("p", "meaning", this.#meaning(code, reason), { "data-testid": "attack-meaning" }),
    );
    result.replaceChildren(verdict);
  }

  #meaning(code, reason) {
    if (reason === "ISOLATION_VIOLATION") return "The sidecar refused it, delivered nothing, and wrote it to the audit trail.";
    if (code === "OK") return "Delivered: this is the key of this very tab.";
    return "The send was not made.";
  }
}

/** What a page leaves for the one that is loaded after it in this tab, and only for that: it is taken, not read. */
class Luggage {
  #name;

  constructor(user) {
    this.#name = `ws-sidecar-demo:${user}`;
  }

  pack(state) {
    sessionStorage.setItem(this.#name, JSON.stringify(state));
  }

  unpack() {
    const packed = sessionStorage.getItem(this.#name);
    sessionStorage.removeItem(this.#name); // a tab that is duplicated begins anew, it does not take this one's place
    return packed && JSON.parse(packed);
  }
}

/** As JSON has it: bytes in base64, which is how they crossed the socket. */
const written = (data) => (data instanceof Uint8Array ? btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join("")) : data);

const takeMessage = (conversation, attacks, { event, replyTo: id, stream, data, sequence }) => {
  if (event === "agent.word" && stream?.state === "open") conversation.word(id, data, sequence);
  else if (event === "agent.word" && stream?.state === "end") conversation.done(id, sequence);
  else if (event === "agent.word") conversation.failed(id, "the agent gave up");
  else if (event === "agent.stopped") conversation.stopped(id, data.words);
  else if (event === "agent.verdict") attacks.verdict(id, data);
  else conversation.note(`${event || "message"}: ${JSON.stringify(written(data))}`);
};

const start = async (user) => {
  const { body: config } = await fetchJson("/dev/config");
  const connection = new Connection(config.websocket_url, () => mintUserToken(user));
  const attacks = new Attacks(connection);
  const conversation = new Conversation();
  const tabs = new Tabs(user);
  const log = new Log();
  const luggage = new Luggage(user);
  for (const id of ["messages", "log"]) followTheEnd(element(id));
  new AttackCard(user, tabs, attacks);

  const ask = (question) => {
    const id = `q-${crypto.randomUUID()}`;
    conversation.question(id, question);
    connection.ask(id, "ask", { question });
  };

  conversation.addEventListener("stop", ({ detail: id }) => {
    conversation.stopping(id);
    connection.cancel(id);
  });
  connection.addEventListener("state", ({ detail: { state, text } }) => {
    element("state").dataset.state = state;
    element("state").textContent = text;
    element("ask").disabled = element("attack-send").disabled = state !== "connected";
    if (state !== "connected") tabs.announce("");
  });
  connection.addEventListener("frame", ({ detail: { direction, frame } }) => log.add(direction, frame));
  connection.addEventListener("welcome", ({ detail: { connectionId, isolationKey, recovery } }) => {
    element("connection-id").textContent = shorten(connectionId);
    element("connection-id").title = `connection id ${connectionId}`;
    tabs.announce(isolationKey);
    if (recovery === "new" || recovery === "denied") conversation.interrupt();
  });
  connection.addEventListener("message", ({ detail: message }) => takeMessage(conversation, attacks, message));
  connection.addEventListener("refused", ({ detail: { id, reason } }) => {
    if (attacks.verdict(id, { code: "REFUSED", reason })) return;
    conversation.failed(id, reason);
  });
  connection.addEventListener("gap", ({ detail: { first, last, reason } }) =>
    conversation.note(`messages ${first}–${last} could not be kept (${reason})`),
  );

  element("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = element("question").value.trim();
    if (!question || !connection.connected) return;
    element("question").value = "";
    ask(question);
  });
  for (const suggestion of SUGGESTIONS) {
    const button = make("button", "suggestion", suggestion, { type: "button" });
    button.addEventListener("click", () => connection.connected && ask(suggestion));
    const item = make("li", "");
    item.append(button);
    element("suggestions").append(item);
  }

  addEventListener("pagehide", () => {
    luggage.pack({ connection: connection.leave(), conversation: conversation.state });
  });
  addEventListener("pageshow", ({ persisted }) => {
    if (!persisted) return;
    luggage.unpack(); // this page has it all
    connection.open();
  });
  const left = luggage.unpack();
  if (left) {
    conversation.restore(left.conversation);
    connection.restore(left.connection);
  }
  connection.open();
};

const showRoom = (user) => {
  const other = user === "alice" ? "bob" : "alice";
  document.title = `${user} · ws-sidecar demo`;
  document.documentElement.style.setProperty("--hue", HUES[user] ?? [...user].reduce((sum, c) => sum * 31 + c.charCodeAt(0), 7) % 360);
  element("user").textContent = user;
  element("avatar").textContent = user.charAt(0).toUpperCase();
  element("open-other").href = `/?user=${other}`;
  element("open-other").textContent = `Open ${other} in a tab`;
  for (const id of ["identity", "others", "room"]) element(id).hidden = false;
};

const showChooser = (notice) => {
  element("chooser").hidden = false;
  element("chooser-notice").hidden = !notice;
  element("chooser-notice").textContent = notice;
};

const user = new URLSearchParams(location.search).get("user");
if (user !== null && IDENTIFIER.test(user)) {
  showRoom(user);
  start(user);
} else {
  showChooser(user === null ? "" : "A user is 1 to 128 of A–Z a–z 0–9 _ . : @ | -");
}
