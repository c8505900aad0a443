/** One message on its way through a sender, from `send` to its outcome. */

import type { SidecarError } from "./errors.js";
import type { LaneKey } from "./lanes.js";
import type { Receipt } from "./values.js";

/** How the caller is told. */
export interface Outcome {
  resolve(receipt: Receipt): void;
  reject(error: Error): void;
}

/** `order` is its place among all, kept when it is sent again. */
export class Entry {
  readonly order: number;
  readonly key: LaneKey;
  /** The protobuf Message, encoded. */
  readonly bytes: Uint8Array;
  /** How long to wait for the client's acknowledgement once it is accepted. */
  readonly waitForAckS: number | undefined;
  /** When its caller has waited long enough, in monotonic seconds. */
  due: number;
  /** Accepted; waiting for what the client does. */
  receipt: Receipt | undefined;
  /** It counts as in flight, waiting for room no more. */
  admitted = false;
  written = false;
  /** It was written to a stream that ended before the answer. */
  unanswered = false;
  /** Its caller is gone, or has been told. */
  told = false;
  /** Nothing of it is held any more. */
  left = false;
  /** Called when the caller is told. */
  onTold: (() => void) | undefined;
  readonly #outcome: Outcome;

  constructor(
    order: number,
    key: LaneKey,
    bytes: Uint8Array,
    due: number,
    waitForAckS: number | undefined,
    outcome: Outcome,
  ) {
    this.order = order;
    this.key = key;
    this.bytes = bytes;
    this.due = due;
    this.waitForAckS = waitForAckS;
    this.#outcome = outcome;
  }

  /** It was accepted, and nothing more will be known of it, or is asked. */
  resolve(receipt: Receipt): void {
    if (this.#tell()) this.#outcome.resolve(receipt);
  }

  /** It was refused, or its time is up. One that has a receipt keeps it. */
  fail(error: SidecarError): void {
    if (this.receipt !== undefined) this.resolve(this.receipt);
    else this.giveUp(error);
  }

  /** Its caller wants no outcome of the sidecar's any more. */
  giveUp(error: Error): void {
    if (this.#tell()) this.#outcome.reject(error);
  }

  /** Whether this is the time that the caller is told. */
  #tell(): boolean {
    if (this.told) return false;
    this.told = true;
    this.onTold?.();
    return true;
  }
}
