/** What a sender decides: what goes into the next frame, whose an answer is, what is sent again. No I/O, no clock. */

import { receiptFrom } from "./answers.js";
import { Deque } from "./deque.js";
import { Entry } from "./entry.js";
import type { Outcome } from "./entry.js";
import { errorFromStatus } from "./error-catalogue.js";
import { LaneNotOpen } from "./errors.js";
import type { SidecarError } from "./errors.js";
import { closeLane, MessagesFrame, openLane } from "./frames.js";
import type * as pb from "./generated/sidecar/api/v1/delivery_service.js";
import type { Receipt as PbReceipt } from "./generated/sidecar/api/v1/types.js";
import { Lanes } from "./lanes.js";
import type { Lane, LaneKey } from "./lanes.js";
import type { SenderLimits } from "./sender-limits.js";
import type { Target } from "./values.js";

/** A client wants no more of a response stream, or of the answer to a message of its own; one may be empty. */
export interface StreamCancellation {
  readonly isolationKey: string;
  readonly streamId: string;
  readonly replyTo: string;
}

/** What the core tells of. */
export interface CoreEvents {
  /** The entry was accepted and waits for the client's acknowledgement from now on. */
  waits(entry: Entry): void;
  /** Called once for each entry, when nothing of it is held any more. */
  left(entry: Entry): void;
  streamCancelled(cancellation: StreamCancellation): void;
}

/** The messages of one sender, from `add` to their outcome, over as many streams as it takes. */
export class SenderCore {
  readonly #limits: SenderLimits;
  readonly #reportAcknowledged: boolean;
  readonly #events: CoreEvents;
  readonly #queue = new Deque<Entry>();
  /** Beyond `maxInFlight`: in the order in which they were begun. */
  readonly #waitingForRoom = new Deque<Entry>();
  readonly #lanes: Lanes;
  #order = 0;
  #inFlight = 0;

  constructor(limits: SenderLimits, reportAcknowledged: boolean, events: CoreEvents) {
    this.#limits = limits;
    this.#reportAcknowledged = reportAcknowledged;
    this.#events = events;
    this.#lanes = new Lanes(limits.maxLanes);
  }

  /** Messages that wait to be written or answered. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Whether something waits to be written. */
  hasQueued(): boolean {
    this.#passOverGone(this.#queue);
    return this.#queue.length > 0;
  }

  /** Whether nothing is held. */
  get empty(): boolean {
    return this.#inFlight === 0; // what waits for room is let in as soon as there is some
  }

  /** The key of that target. Throws what it is refused with. */
  keyOf(target: Target): LaneKey {
    return this.#lanes.keyOf(target);
  }

  /** Queue one message, behind all that were added before; it waits for room first where there is none. */
  add(key: LaneKey, bytes: Uint8Array, due: number, waitForAckS: number | undefined, outcome: Outcome): Entry {
    const entry = new Entry(this.#order, key, bytes, due, waitForAckS, outcome);
    this.#order += 1;
    key.held += 1;
    if (this.#inFlight < this.#limits.maxInFlight) this.#admit(entry);
    else this.#waitingForRoom.push(entry);
    return entry;
  }

  #admit(entry: Entry): void {
    entry.admitted = true;
    this.#inFlight += 1;
    this.#queue.push(entry);
  }

  /** Its caller is gone: unwritten it is dropped; written, its answer is taken and forgotten. Idempotent. */
  abandon(entry: Entry): void {
    if (entry.left) return;
    entry.told = true;
    if (!entry.written) {
      this.#leave(entry);
    } else if (entry.receipt !== undefined) {
      this.#stopWaiting(entry);
    }
  }

  // Out

  /** The next frames to write, in order; none when there is nothing, or no lane free for what is next. */
  take(): Uint8Array[] {
    const frames: Uint8Array[] = [];
    const messages = new MessagesFrame();
    while (this.hasQueued() && messages.length < this.#limits.maxFrameItems) {
      const entry = this.#queue.peek();
      if (entry === undefined) break;
      if (messages.length > 0 && messages.size + entry.bytes.length > this.#limits.maxFrameBytes) break;
      const lane = this.#lanes.find(entry.key) ?? this.#openLane(entry.key, frames);
      if (lane === undefined) break;
      this.#queue.shift();
      entry.written = true;
      lane.put(entry);
      messages.add(lane.number, entry.bytes);
    }
    if (messages.length > 0) frames.push(messages.encode());
    return frames;
  }

  #openLane(key: LaneKey, frames: Uint8Array[]): Lane | undefined {
    if (this.#lanes.full) {
      const least = this.#lanes.closeLeastRecent();
      if (least === undefined) return undefined;
      frames.push(closeLane(least.number));
    }
    const lane = this.#lanes.add(key);
    frames.push(openLane(lane.number, key, this.#reportAcknowledged));
    return lane;
  }

  #passOverGone(queue: Deque<Entry>): void {
    while (queue.peek()?.left === true) queue.shift();
  }

  // In

  /** Take one frame of the sidecar's. Kinds that came after this version are left alone. */
  received({ frame }: pb.DeliverResponse): void {
    switch (frame?.$case) {
      case "receipts":
        for (const item of frame.value.items) this.#onReceipt(item);
        break;
      case "laneError":
        this.#onLaneError(frame.value);
        break;
      case "acknowledged":
        this.#onAcknowledged(frame.value);
        break;
      case "dropped":
        this.#onDropped(frame.value);
        break;
      case "streamCancelled":
        this.#onStreamCancelled(frame.value);
        break;
    }
  }

  #onReceipt(item: pb.DeliverResponse_LaneReceipt): void {
    const lane = this.#lanes.get(item.lane);
    const entry = lane?.pending.get(item.number);
    if (lane === undefined || entry === undefined) return;
    lane.pending.delete(item.number);
    if (item.result?.$case === "receipt") {
      this.#accepted(lane, entry, item.result.value);
    } else if (item.result !== undefined) {
      this.#refused(lane, entry, errorFromStatus(item.result.value));
    }
    if (lane.key.lane !== lane) this.#lanes.forgetIfOver(lane);
  }

  #accepted(lane: Lane, entry: Entry, answer: PbReceipt): void {
    // The first receipt is the one that counts, but for its state.
    const receipt = receiptFrom(answer);
    const decided = receipt.state === "ACKNOWLEDGED" || receipt.state === "DROPPED";
    if (entry.waitForAckS === undefined || entry.told || decided || lane.error !== undefined) {
      entry.resolve(receipt);
      this.#leave(entry);
      return;
    }
    const first = entry.receipt === undefined;
    entry.receipt = receipt;
    lane.waiting.push(entry);
    if (first) this.#events.waits(entry);
    this.#settle(lane);
  }

  #refused(lane: Lane, entry: Entry, error: SidecarError): void {
    const why = error instanceof LaneNotOpen && lane.error !== undefined ? lane.error : error;
    entry.fail(why.again(entry.unanswered));
    this.#leave(entry);
  }

  /** The lane is over: what was written is still answered one by one; what was accepted is heard of no more. */
  #onLaneError(frame: pb.DeliverResponse_LaneError): void {
    const lane = this.#lanes.get(frame.lane);
    if (lane === undefined || frame.error === undefined) return;
    lane.error = errorFromStatus(frame.error);
    const { waiting } = lane;
    lane.waiting = [];
    for (const entry of waiting) {
      entry.fail(lane.error);
      this.#leave(entry);
    }
    this.#lanes.shut(lane);
  }

  #onAcknowledged(frame: pb.DeliverResponse_Acknowledged): void {
    const lane = this.#lanes.get(frame.lane);
    if (lane === undefined) return;
    lane.position = Math.max(lane.position, frame.sequence);
    this.#settle(lane);
  }

  #onDropped(frame: pb.DeliverResponse_Dropped): void {
    const lane = this.#lanes.get(frame.lane);
    if (lane === undefined) return;
    lane.addGap(frame.from, frame.to);
    this.#settle(lane);
  }

  #onStreamCancelled(frame: pb.DeliverResponse_StreamCancelled): void {
    const lane = this.#lanes.get(frame.lane);
    if (lane === undefined) return;
    const { isolationKey } = lane.key;
    this.#events.streamCancelled({ isolationKey, streamId: frame.streamId, replyTo: frame.replyTo });
  }

  /** Tell those whose fate is known by now. */
  #settle(lane: Lane): void {
    if (lane.waiting.length === 0) return;
    const { waiting } = lane;
    lane.waiting = waiting.filter((entry) => lane.fateOf(entry.receipt?.sequence ?? 0) === undefined);
    for (const entry of waiting) {
      const { receipt } = entry;
      const state = lane.fateOf(receipt?.sequence ?? 0);
      if (receipt === undefined || state === undefined) continue;
      entry.resolve({ ...receipt, state });
      this.#leave(entry);
    }
    this.#lanes.forgetIfOver(lane);
  }

  #stopWaiting(entry: Entry): void {
    const lane = entry.key.lane;
    if (!lane?.waiting.includes(entry)) return;
    lane.waiting = lane.waiting.filter((other) => other !== entry);
    this.#leave(entry);
  }

  // Ends

  /**
   * The stream is over, its lanes with it.
   *
   * `again`: what has no answer is to be written to the next one, first and in order; with the same messageId it is taken
   * once. Also what waits for an acknowledgement: the answer to its duplicate says how far it came. Else it fails with the
   * error; what was never written is kept.
   */
  streamEnded(error: SidecarError, again: boolean): void {
    const unfinished = this.#lanes.endAll();
    const kept = again ? unfinished.filter((entry) => !entry.told) : [];
    for (const entry of kept) {
      entry.written = false;
      entry.unanswered = true;
    }
    this.#queue.putBack(kept);
    this.#fail(again ? unfinished.filter((entry) => entry.told) : unfinished, error);
  }

  /** Give up everything that is held. */
  failAll(error: SidecarError): void {
    this.#fail([...this.#lanes.endAll(), ...this.#queue.drain(), ...this.#waitingForRoom.drain()], error);
  }

  #fail(entries: readonly Entry[], error: SidecarError): void {
    for (const entry of entries) {
      if (entry.left) continue;
      entry.fail(error.again());
      this.#leave(entry);
    }
  }

  #leave(entry: Entry): void {
    if (entry.left) return;
    entry.left = true;
    entry.key.held -= 1;
    if (entry.key.held === 0) this.#lanes.letGo(entry.key);
    if (entry.admitted) {
      this.#inFlight -= 1;
      this.#admitNext();
    }
    this.#events.left(entry);
  }

  /** There is room for one: the one that waits for longest takes it. */
  #admitNext(): void {
    this.#passOverGone(this.#waitingForRoom);
    const next = this.#waitingForRoom.shift();
    if (next !== undefined) this.#admit(next);
  }
}
