/**
 * The lanes of one Deliver stream: which are open, what waits in them for an answer, which one gives way.
 *
 * A lane is opened by one token and carries only what was sent by that token. Renewing the token of an open lane would save
 * a number; but messages that follow a refused renewal would go out by the token before, which is not theirs.
 */

import type { Entry } from "./entry.js";
import type { SidecarError } from "./errors.js";
import { checkToken, text } from "./messages.js";
import type { DeliveryState, Target } from "./values.js";

const MAX_REMEMBERED_GAPS = 64;

/** What opens a lane. The token is a secret: a key is never printed. */
export class LaneKey {
  readonly isolationKey: string;
  readonly expectedUserId: string;
  readonly #contextToken: string;
  /** The open lane of this key. */
  lane: Lane | undefined;
  /** How many messages are held for it. */
  held = 0;

  /** Throws what a target that no lane can be opened for is refused with. */
  constructor(target: Target) {
    this.isolationKey = text(target.isolationKey, "isolation_key");
    this.expectedUserId = text(target.expectedUserId, "expected_user_id");
    this.#contextToken = checkToken(target.contextToken);
  }

  get contextToken(): string {
    return this.#contextToken;
  }

  opensAlso(target: Target): boolean {
    return target.isolationKey === this.isolationKey && (target.expectedUserId ?? "") === this.expectedUserId;
  }
}

/** One numbered lane of the stream. */
export class Lane {
  readonly number: number;
  readonly key: LaneKey;
  /** Written and not answered, by their number in the lane; in order. */
  readonly pending = new Map<number, Entry>();
  /** Accepted, and waiting for the client's acknowledgement. */
  waiting: Entry[] = [];
  /** Why it is over. */
  error: SidecarError | undefined;
  /** The client has every message up to this sequence. */
  position = 0;
  /** When it was used last, in messages. */
  used = 0;
  #next = 0;
  #gaps: (readonly [first: number, last: number])[] = [];

  constructor(number: number, key: LaneKey) {
    this.number = number;
    this.key = key;
  }

  /** Nothing waits for it. */
  get idle(): boolean {
    return this.pending.size === 0 && this.waiting.length === 0;
  }

  /** The next message of the lane. */
  put(entry: Entry): void {
    this.pending.set(this.#next, entry);
    this.#next += 1;
  }

  /** The client is told of a gap. */
  addGap(first: number, last: number): void {
    this.#gaps.push([first, last]);
    if (this.#gaps.length > MAX_REMEMBERED_GAPS) this.#gaps.shift();
  }

  /** What the lane was told of that sequence: acknowledged, dropped, or nothing yet. */
  fateOf(sequence: number): DeliveryState | undefined {
    if (this.#gaps.some(([first, last]) => first <= sequence && sequence <= last)) return "DROPPED";
    return sequence <= this.position ? "ACKNOWLEDGED" : undefined;
  }
}

/** The open lanes by what opened them, and those that still have answers to get. */
export class Lanes {
  readonly #maxLanes: number;
  readonly #keys = new Map<string, LaneKey[]>();
  readonly #byNumber = new Map<number, Lane>();
  readonly #open = new Set<Lane>();
  #nextNumber = 0;
  #uses = 0;

  constructor(maxLanes: number) {
    this.#maxLanes = maxLanes;
  }

  /** How many are open. */
  get size(): number {
    return this.#open.size;
  }

  /** The key of that target, the same object each time while something of it is held. Found by the token's text alone. */
  keyOf(target: Target): LaneKey {
    const keys = this.#keys.get(target.contextToken);
    const known = keys?.find((key) => key.opensAlso(target));
    if (known !== undefined) return known;
    const key = new LaneKey(target);
    if (keys === undefined) this.#keys.set(key.contextToken, [key]);
    else keys.push(key);
    return key;
  }

  /** Forget a key that nothing is held for. */
  letGo(key: LaneKey): void {
    if (key.held > 0 || key.lane !== undefined) return;
    const left = this.#keys.get(key.contextToken)?.filter((other) => other !== key) ?? [];
    if (left.length === 0) this.#keys.delete(key.contextToken);
    else this.#keys.set(key.contextToken, left);
  }

  /** The lane of that number, open or with answers to get. */
  get(number: number): Lane | undefined {
    return this.#byNumber.get(number);
  }

  /** The open lane of that key, used now. */
  find(key: LaneKey): Lane | undefined {
    if (key.lane !== undefined) key.lane.used = ++this.#uses;
    return key.lane;
  }

  /** No further lane may be opened before one is closed. */
  get full(): boolean {
    return this.#open.size >= this.#maxLanes;
  }

  /** A new lane; numbers are not used twice on a stream. */
  add(key: LaneKey): Lane {
    const lane = new Lane(this.#nextNumber, key);
    this.#nextNumber += 1;
    lane.used = ++this.#uses;
    key.lane = lane;
    this.#open.add(lane);
    this.#byNumber.set(lane.number, lane);
    return lane;
  }

  /** Close the idle lane that was not used for longest; undefined when all are busy. */
  closeLeastRecent(): Lane | undefined {
    let least: Lane | undefined;
    for (const lane of this.#open) {
      if (lane.idle && (least === undefined || lane.used < least.used)) least = lane;
    }
    if (least !== undefined) this.shut(least);
    return least;
  }

  /** The lane is not open any more; its answers still come. */
  shut(lane: Lane): void {
    if (this.#open.delete(lane)) {
      lane.key.lane = undefined;
      this.letGo(lane.key);
    }
    this.forgetIfOver(lane);
  }

  /** A lane that is not open and has nothing to get is over. */
  forgetIfOver(lane: Lane): void {
    if (lane.idle && !this.#open.has(lane)) this.#byNumber.delete(lane.number);
  }

  /** The stream is over, every lane with it: all that was written and has no (final) answer, in its first order. */
  endAll(): Entry[] {
    const entries = [...this.#byNumber.values()].flatMap((lane) => [...lane.pending.values(), ...lane.waiting]);
    for (const lane of this.#open) lane.key.lane = undefined;
    const keys = [...this.#open].map((lane) => lane.key);
    this.#open.clear();
    this.#byNumber.clear();
    this.#nextNumber = 0;
    for (const key of keys) this.letGo(key);
    return entries.sort((one, other) => one.order - other.order);
  }
}
