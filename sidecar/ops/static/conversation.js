/** Questions and the answers that grow below them; what of it a page that is loaded anew begins with. */

import { element, make } from "./elements.js";

const MAX_ENTRIES = 100;
const NOTES = {
  waiting: "waiting for the first word",
  stopping: "stopping…",
  interrupted: "interrupted: the connection context ended",
};

export class Conversation extends EventTarget {
  #view = element("messages");
  #entries = [];
  #answers = new Map();

  question(id, text) {
    this.#append({ kind: "question", id, text });
    this.#append({ kind: "answer", id, text: "", state: "open", words: 0, first: null, last: null, note: NOTES.waiting });
  }

  word(id, text, sequence) {
    const answer = this.#answers.get(id);
    if (!answer) return;
    const { entry, shown } = answer;
    entry.first ??= sequence;
    entry.last = sequence;
    entry.words += 1;
    entry.text += text;
    shown.text.append(make("span", "word", text));
    if (entry.state === "open") this.#note(answer, this.#range(entry));
  }

  done(id, sequence) {
    const answer = this.#answers.get(id);
    if (!answer) return;
    answer.entry.last = sequence;
    this.#finish(answer, "done", this.#range(answer.entry));
    element("announcer").textContent = answer.entry.text;
  }

  stopping(id) {
    const answer = this.#answers.get(id);
    if (answer) this.#show(answer, "stopping", NOTES.stopping);
  }

  stopped(id, words) {
    const answer = this.#answers.get(id);
    if (!answer) return;
    const count = `${words} ${words === 1 ? "word" : "words"}`;
    this.#finish(answer, "stopped", `stopped: the agent has ended after ${count}`);
  }

  failed(id, text) {
    const answer = this.#answers.get(id);
    if (answer) this.#finish(answer, "failed", text);
  }

  note(text) {
    this.#append({ kind: "note", text });
  }

  /** The context has changed: what was still coming will not come any more. */
  interrupt() {
    for (const id of [...this.#answers.keys()]) this.failed(id, NOTES.interrupted);
  }

  /** Everything said so far, for `restore`. */
  get state() {
    return this.#entries.map(({ entry }) => entry);
  }

  restore(entries) {
    for (const entry of entries) this.#append(entry);
  }

  #append(entry) {
    element("empty").hidden = true;
    const shown = { question: this.#makeQuestion, answer: this.#makeAnswer, note: this.#makeNote }[entry.kind].call(this, entry);
    const kept = { entry, shown };
    this.#entries.push(kept);
    if (entry.kind === "answer" && ["open", "stopping"].includes(entry.state)) this.#answers.set(entry.id, kept);
    this.#view.append(shown.root);
    while (this.#entries.length > MAX_ENTRIES) this.#entries.shift().shown.root.remove();
  }

  #makeQuestion({ text }) {
    return { root: make("div", "question", text, { "data-testid": "question-text" }) };
  }

  #makeNote({ text }) {
    return { root: make("p", "note", text, { role: "status" }) };
  }

  #makeAnswer({ id, text, state, note }) {
    const busy = state === "open" || state === "stopping";
    const root = make("article", "answer", "", { "data-testid": "answer", "data-state": state, "aria-busy": String(busy) });
    const shown = {
      root,
      text: make("p", "text", text, { "data-testid": "answer-text" }),
      note: make("p", "note mono", note, { "data-testid": "answer-note" }),
      stop: make("button", "stop", "Stop", { type: "button", "data-testid": "stop" }),
    };
    shown.stop.addEventListener("click", () => this.dispatchEvent(new CustomEvent("stop", { detail: id })));
    const foot = make("div", "foot");
    foot.append(shown.stop, shown.note);
    root.append(shown.text, foot);
    shown.stop.hidden = !busy;
    shown.stop.disabled = state === "stopping";
    return shown;
  }

  #finish(answer, state, note) {
    this.#answers.delete(answer.entry.id);
    this.#show(answer, state, note);
    answer.shown.root.setAttribute("aria-busy", "false");
    answer.shown.stop.hidden = true;
  }

  #show(answer, state, note) {
    answer.entry.state = state;
    answer.shown.root.dataset.state = state;
    answer.shown.stop.disabled = state === "stopping";
    this.#note(answer, note);
  }

  #note({ entry, shown }, note) {
    entry.note = note;
    shown.note.textContent = note;
  }

  #range({ words, first, last }) {
    return `${words} ${words === 1 ? "word" : "words"} · sequence ${first}–${last}`;
  }
}
