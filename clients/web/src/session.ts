/**
 * What this side knows of its context across sockets: position, acknowledgements, what waits to be said. No I/O, no
 * clock.
 *
 * Four positions: `acked` was said to the sidecar on this socket, `processed` was dealt with by the consumers, `received`
 * was taken in, `at` is how far this socket has come. A resume names `processed`; what the sidecar sends again up to
 * `received` is known already and passed over. So nothing is lost with this page, nor handed out twice in it.
 */

import { ProtocolError, messageOf } from "./frames.js";
import type { Frame, Welcome } from "./frames.js";
import { SidecarError, TransportError, badRequest } from "./errors.js";
import type { Accepted, ConnectOptions, Event, Gap, Replaced, ResumeState } from "./types.js";
import type { Hooks } from "./reader.js";

/** How many events may wait for their acknowledgement: as many as an outbox keeps. */
const MAX_PENDING = 10_000;
const MAX_CANCELS = 256;
const MAX_QUESTIONS = 256;

/** A message of the client's that has no answer yet. */
interface Question {
  readonly text: string;
  readonly settle: (result: Accepted | SidecarError) => void;
  written: boolean;
}

/** An event that is not dealt with, or stands behind one that is not. `last` 0: of a context that was replaced. */
interface Held {
  last: number;
  readonly size: number;
  handed: boolean;
  done: boolean;
}

export class Session implements Hooks<Event> {
  /** The last one, with the context token of now. */
  welcome: Welcome | undefined;
  #resumeToken = "";
  #attempt = 0;
  #processed = 0;
  #received = 0;
  #at = 0;
  #acked = 0;
  // In the order in which they came.
  readonly #pending = new Map<Event, Held>();
  #unread = 0;
  #unreadSize = 0;
  readonly #questions = new Map<string, Question>();
  readonly #cancels: string[] = [];

  readonly #automatic: boolean;
  readonly #maxUnread: number;
  readonly #maxUnreadSize: number;
  readonly #moved: () => void;
  readonly #keep: ConnectOptions["onResume"];

  /**
   * `automatic`: a consumer that goes on has dealt with what it had. `moved`: told of a new position, and of room. `keep`:
   * given each new `resumeState` before the sidecar hears of it.
   */
  constructor(
    resume: ResumeState | null | undefined,
    automatic: boolean,
    maxUnread: number,
    maxUnreadSize: number,
    moved: () => void,
    keep: ConnectOptions["onResume"],
  ) {
    this.#keep = keep;
    this.#automatic = automatic;
    this.#maxUnread = maxUnread;
    this.#maxUnreadSize = maxUnreadSize;
    this.#moved = moved;
    if (resume) {
      this.#resumeToken = resume.token;
      this.#attempt = resume.attempt;
      this.#processed = this.#received = resume.lastSequence;
    }
  }

  // The first two frames

  get resumeState(): ResumeState | null {
    return this.#resumeToken
      ? { token: this.#resumeToken, lastSequence: this.#processed, attempt: this.#attempt }
      : null;
  }

  /** Each says a higher attempt, which is kept first: one that was said once is never said again. */
  hello(token: string): string {
    this.#attempt++;
    this.#remember();
    const state = this.resumeState;
    const resume = state && { token: state.token, last_sequence: state.lastSequence, attempt: state.attempt };
    return JSON.stringify({ type: "hello", token, ...(resume && { resume }) });
  }

  /** The socket is ready: what is to be handed out first. What had no answer is asked again in a resumed context. */
  welcomed(welcome: Welcome): Gap | Replaced | undefined {
    const asked = this.#resumeToken !== "";
    const resumed = asked && (welcome.recovery === "full" || welcome.recovery === "gap");
    this.welcome = welcome;
    this.#resumeToken = welcome.resume_token;
    this.#at = this.#acked = welcome.sequence;
    const event = resumed ? this.#passOver(welcome.sequence) : this.#beginAnew(welcome, asked);
    for (const question of this.#questions.values()) question.written = false;
    this.#remember();
    return event;
  }

  /** There is nothing to come back to. */
  forget(): void {
    this.#resumeToken = "";
    this.#remember();
  }

  #remember(): void {
    try {
      this.#keep?.(this.resumeState);
    } catch {
      // A store that is full: this page goes on, a reload begins with what was kept last.
    }
  }

  /** A further context token. */
  renewed(token: string, expiresAt: number): void {
    if (this.welcome) this.welcome = { ...this.welcome, context_token: token, context_token_expires_at: expiresAt };
  }

  /** The sidecar forgot what was never here; it is said, not hidden. */
  #passOver(position: number): Gap | undefined {
    return position > this.#received ? this.#gap(this.#received + 1, position, "lost") : undefined;
  }

  #beginAnew(welcome: Welcome, replaced: boolean): Replaced | undefined {
    this.#processed = this.#received = welcome.sequence;
    if (!replaced) return undefined;
    for (const held of this.#pending.values()) held.last = 0;
    // They may have been taken in the context before, and would be asked twice in this one.
    this.failQuestions("the context was replaced", true);
    const event: Replaced = {
      kind: "replaced",
      connectionId: welcome.connection_id,
      isolationKey: welcome.isolation_key,
    };
    this.#hold(event, 0, 0);
    return event;
  }

  // In

  /** Take one message or gap of so many characters; undefined where it came before. Throws for a hole before it. */
  take(frame: Frame & { type: "message" | "gap" }, size: number): Event | undefined {
    const [first, last] = frame.type === "gap" ? [frame.from, frame.to] : [frame.sequence, frame.sequence];
    if (!first || first > last) throw new ProtocolError();
    if (last <= this.#at) {
      this.#acked = Math.min(this.#acked, first - 1); // sent again: it was not acknowledged
      return undefined;
    }
    if (first > this.#at + 1) throw new ProtocolError();
    if (last <= this.#received) {
      this.#at = last;
      return undefined;
    }
    if (frame.type === "gap") return this.#gap(Math.max(first, this.#received + 1), last, frame.reason);
    const event = messageOf(frame, this.connectionId);
    this.#at = this.#received = last;
    this.#hold(event, last, size);
    return event;
  }

  get connectionId(): string {
    return this.welcome?.connection_id ?? "";
  }

  #gap(first: number, last: number, reason: string): Gap {
    const event: Gap = { kind: "gap", first, last, reason, connectionId: this.connectionId };
    this.#received = last;
    this.#at = Math.max(this.#at, last);
    this.#hold(event, last, 0);
    return event;
  }

  #hold(event: Event, last: number, size: number): void {
    this.#pending.set(event, { last, size, handed: false, done: false });
    this.#unread++;
    this.#unreadSize += size;
  }

  // What the consumers have

  /** How much of what may be read ahead is there. From 1 on nothing more should be read before some of it is taken. */
  get fullness(): number {
    return Math.max(
      this.#unread / this.#maxUnread,
      this.#unreadSize / this.#maxUnreadSize,
      this.#pending.size / MAX_PENDING,
    );
  }

  handed(event: Event): void {
    const held = this.#pending.get(event);
    if (!held || held.handed) return;
    held.handed = true;
    this.#unread--;
    this.#unreadSize -= held.size;
    this.#moved();
  }

  /** The consumer went on: dealt with, unless that is the caller's to say. */
  done(event: Event): void {
    if (this.#automatic) this.letGo(event);
  }

  /** Dealt with, handed out or not. */
  letGo(event: Event): void {
    this.handed(event);
    const held = this.#pending.get(event);
    if (held) held.done = true;
    this.#advance();
  }

  /** Everything that was handed out, up to that event, is dealt with. Idempotent. */
  acknowledge(upTo?: Event): void {
    const limit = upTo && this.#pending.get(upTo);
    if (upTo && !limit) return;
    for (const held of this.#pending.values()) {
      if (held.handed) held.done = true;
      if (held === limit) break;
    }
    this.#advance();
  }

  #advance(): void {
    for (const [event, held] of this.#pending) {
      if (!held.done) break;
      this.#pending.delete(event);
      this.#processed = Math.max(this.#processed, held.last);
    }
    this.#moved();
  }

  // Out

  /** What is to be acknowledged: never above what came on this socket, which may be behind the one before. */
  get owed(): number {
    const sequence = Math.min(this.#processed, this.#at);
    return sequence > this.#acked ? sequence : 0;
  }

  /** Kept first: a page that comes back with less than it acknowledged would find a gap. */
  ack(): string {
    this.#remember();
    this.#acked = this.owed;
    return `{"type":"ack","sequence":${this.#acked}}`;
  }

  /** The next message or cancel to write; undefined when there is nothing to say. */
  next(): string | undefined {
    for (const question of this.#questions.values()) {
      if (!question.written) {
        question.written = true;
        return question.text;
      }
    }
    return this.#cancels.shift();
  }

  /** A message to the agents; gives what forgets it. Throws BAD_REQUEST, and RATE_LIMITED for one too many. */
  ask(id: string, text: string, settle: Question["settle"]): () => void {
    const limit = this.welcome?.limits.max_inbound_bytes;
    if (limit !== undefined && new TextEncoder().encode(text).length > limit) throw badRequest("the message is too long");
    if (this.#questions.has(id)) throw badRequest("this id waits for its answer");
    if (this.#questions.size >= MAX_QUESTIONS) {
      throw new SidecarError("RATE_LIMITED", "too many messages have no answer", true);
    }
    const question: Question = { text, settle, written: false };
    this.#questions.set(id, question);
    return () => {
      if (this.#questions.get(id) === question) this.#questions.delete(id);
    };
  }

  /** Whether that message waits for its answer and nobody was told of it yet. */
  unsaid(id: string): boolean {
    return this.#questions.get(id)?.written === false;
  }

  /** The sidecar's answer to one message, if it is one of these. */
  answer(id: string, result: Accepted | SidecarError): void {
    const question = this.#questions.get(id);
    this.#questions.delete(id);
    question?.settle(result);
  }

  /** Nobody will answer; they may have been taken all the same. */
  failQuestions(why: string, writtenOnly = false): void {
    for (const [id, { written }] of this.#questions) {
      if (written || !writtenOnly) this.answer(id, new TransportError(why, !written));
    }
  }

  /** Of more than 256 that wait the oldest are forgotten. */
  cancel(text: string): void {
    this.#cancels.push(text);
    if (this.#cancels.length > MAX_CANCELS) this.#cancels.shift();
  }
}
