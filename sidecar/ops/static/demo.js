/** The demo page: a conversation with the agent, a send with the wrong token, and a log of what crossed the socket. */

import { Connection } from "./connection.js";
import { Tabs } from "./tabs.js";

const IDENTIFIER = /^[A-Za-z0-9_.:@|-]{1,128}$/;
const HUES = { alice: 175, bob: 55 };
const MAX_LOG_ROWS = 300;
const MAX_ENTRIES = 100;
const SUGGESTIONS = [
  "Why can nobody else see this answer?",
  "What is a context token?",
  "What happens if my connection breaks?",
];

const element = (id) => document.getElementById(id);
const shorten = (text) => (text.length > 10 ? `${text.slice(0, 8)}…` : text);
const capitalise = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A new element with a class, text and attributes; text is never read as markup. */
const make = (tag, className, text = "", attributes = {}) => {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

/** Keeps a view at its end, however it or its content grows or shrinks, until somebody scrolls away from there. */
const followTheEnd = (view) => {
  let following = true;
  const follow = () => {
    if (following) view.scrollTop = view.scrollHeight;
  };
  view.addEventListener("scroll", () => {
    following = view.scrollHeight - view.scrollTop - view.clientHeight < 48;
  });
  new ResizeObserver(follow).observe(view);
  new MutationObserver(follow).observe(view, { childList: true, subtree: true, characterData: true });
};

const fetchJson = async (url, options) => {
  const response = await fetch(url, options);
  const body = await response.json();
  return { ok: response.ok, body };
};

const postJson = (url, body, headers = {}) =>
  fetchJson(url, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify(body),
  });

/** A user token from the development site; a real page has it from its identity provider. */
const mintUserToken = async (user) => {
  const { ok, body } = await postJson("/dev/token", { sub: user });
  if (!ok) throw new Error(body.error);
  return body.token;
};

/** The agent's own HTTP endpoint, asked as any existing service is: by the user's token, and the context's beside it. */
class Agent {
  #url;
  #connection;
  #userToken;

  constructor(url, connection, userToken) {
    this.#url = url;
    this.#connection = connection;
    this.#userToken = userToken;
  }

  ask(id, question) {
    return this.#post("/ask", { id, question });
  }

  attack(victimKey) {
    return this.#post("/attack", { victim_isolation_key: victimKey });
  }

  async #post(path, body) {
    try {
      return await postJson(this.#url + path, body, {
        Authorization: `Bearer ${await this.#userToken()}`,
        "X-Context-Token": this.#connection.contextToken,
      });
    } catch {
      return { ok: false, body: { code: "UNREACHABLE", reason: "the demo agent does not answer" } };
    }
  }
}

/** Questions and the answers that grow below them. */
class Conversation {
  #view = element("messages");
  #answers = new Map();

  question(id, text) {
    element("empty").hidden = true;
    this.#append(make("div", "question", text, { "data-testid": "question-text" }));
    this.#answer(id);
  }

  word(id, text, sequence) {
    const answer = this.#answer(id);
    answer.first ??= sequence;
    answer.last = sequence;
    answer.words += 1;
    answer.text.append(make("span", "word", text));
    answer.note.textContent = this.#range(answer);
  }

  done(id, sequence) {
    const answer = this.#answer(id);
    answer.last = sequence;
    answer.note.textContent = this.#range(answer);
    this.#finish(id, answer, "done");
    element("announcer").textContent = answer.text.textContent;
  }

  failed(id, text) {
    const answer = this.#answers.get(id);
    if (!answer) return; // it was answered before
    answer.note.textContent = text;
    this.#finish(id, answer, "failed");
  }

  note(text) {
    this.#append(make("p", "note", text, { role: "status" }));
  }

  /** The context has changed: what was still coming will not come any more. */
  interrupt() {
    for (const id of [...this.#answers.keys()]) this.failed(id, "interrupted: the connection context ended");
  }

  #answer(id) {
    const known = this.#answers.get(id);
    if (known) return known;
    const entry = make("article", "answer", "", { "data-testid": "answer", "data-state": "open", "aria-busy": "true" });
    const text = make("p", "text", "", { "data-testid": "answer-text" });
    const note = make("p", "note mono", "waiting for the first word", { "data-testid": "answer-note" });
    entry.append(text, note);
    const answer = { entry, text, note, words: 0, first: null, last: null };
    this.#answers.set(id, answer);
    this.#append(entry);
    return answer;
  }

  #finish(id, { entry }, state) {
    this.#answers.delete(id);
    entry.dataset.state = state;
    entry.setAttribute("aria-busy", "false");
  }

  #range({ words, first, last }) {
    return `${words} ${words === 1 ? "word" : "words"} · sequence ${first}–${last}`;
  }

  #append(entry) {
    this.#view.append(entry);
    while (this.#view.children.length > MAX_ENTRIES) this.#view.children[1].remove();
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
        return `${frame.sequence} ${frame.event ?? ""} ${JSON.stringify(frame.data.text ?? frame.data)}`;
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
}

/** The card from which this tab tries to reach another one's context with its own token. */
class AttackCard {
  #tabs;
  #user;
  #agent;
  #edited = false;

  constructor(user, tabs, agent) {
    this.#user = user;
    this.#tabs = tabs;
    this.#agent = agent;
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
    const { body } = await this.#agent.attack(key);
    const delivered = body.code === "OK";
    const verdict = make("div", delivered ? "verdict ok" : "verdict");
    verdict.append(
      make("p", "visually-hidden", "The sidecar answered:"),
      make("p", "code mono", body.code, { "data-testid": "attack-code" }),
      make("p", "reason mono", body.reason ?? "", { "data-testid": "attack-reason" }),
      make("p", "meaning", this.#meaning(body), { "data-testid": "attack-meaning" }),
    );
    result.replaceChildren(verdict);
  }

  #meaning({ code, reason }) {
    if (reason === "ISOLATION_VIOLATION") return "The sidecar refused it, delivered nothing, and wrote it to the audit trail.";
    if (code === "OK") return "Delivered: this is the key of this very tab.";
    return "The send was not made.";
  }
}

const start = async (user) => {
  const { body: config } = await fetchJson("/dev/config");
  const connection = new Connection(config.websocket_url, () => mintUserToken(user));
  const agent = new Agent(config.agent_url, connection, () => mintUserToken(user));
  const conversation = new Conversation();
  const tabs = new Tabs(user);
  const log = new Log();
  for (const id of ["messages", "log"]) followTheEnd(element(id));
  new AttackCard(user, tabs, agent);

  const ask = async (question) => {
    const id = `q-${crypto.randomUUID()}`;
    conversation.question(id, question);
    const { ok, body } = await agent.ask(id, question);
    if (!ok) conversation.failed(id, [body.code, body.reason].filter(Boolean).join(" · "));
  };

  connection.addEventListener("state", ({ detail: { state, text } }) => {
    element("state").dataset.state = state;
    element("state").textContent = text;
    element("ask").disabled = element("attack-send").disabled = state !== "connected";
    if (state !== "connected") tabs.announce("");
  });
  connection.addEventListener("frame", ({ detail: { direction, frame } }) => log.add(direction, frame));
  connection.addEventListener("welcome", ({ detail: frame }) => {
    element("connection-id").textContent = shorten(frame.connection_id);
    element("connection-id").title = `connection id ${frame.connection_id}`;
    tabs.announce(frame.isolation_key);
    if (frame.recovery === "new" || frame.recovery === "denied") conversation.interrupt();
  });
  connection.addEventListener("message", ({ detail: frame }) => {
    if (frame.event === "agent.word") conversation.word(frame.reply_to, frame.data.text, frame.sequence);
    else if (frame.event === "agent.done") conversation.done(frame.reply_to, frame.sequence);
    else conversation.note(`${frame.event ?? "message"}: ${JSON.stringify(frame.data)}`);
  });
  connection.addEventListener("gap", ({ detail: { from, to, reason } }) =>
    conversation.note(`messages ${from}–${to} could not be kept (${reason})`),
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

  addEventListener("pagehide", () => connection.close());
  addEventListener("pageshow", ({ persisted }) => persisted && connection.open());
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
