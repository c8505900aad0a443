/**
 * The frames that a sender writes, as bytes. Messages are encoded once, when they are sent: a frame of many is their bytes
 * behind one another. The tags are those of DeliverRequest, Messages and LaneMessage in delivery_service.proto.
 */

import { DeliverRequest } from "./generated/sidecar/api/v1/delivery_service.js";
import type { LaneKey } from "./lanes.js";

/** Field number and wire type. */
const LENGTH_DELIMITED = 2;
const MESSAGES = (2 << 3) | LENGTH_DELIMITED;
const ITEMS = (1 << 3) | LENGTH_DELIMITED;
const LANE = (1 << 3) | 0;
const MESSAGE = (2 << 3) | LENGTH_DELIMITED;

/** `open_lane`. */
export function openLane(lane: number, key: LaneKey, reportAcknowledged: boolean): Uint8Array {
  const { isolationKey, contextToken, expectedUserId } = key;
  const value = { lane, isolationKey, contextToken, expectedUserId, reportAcknowledged };
  return DeliverRequest.encode({ frame: { $case: "openLane", value } }).finish();
}

/** `close_lane`. */
export function closeLane(lane: number): Uint8Array {
  return DeliverRequest.encode({ frame: { $case: "closeLane", value: { lane } } }).finish();
}

/** `messages`, from the lanes' numbers and the messages' bytes. */
export class MessagesFrame {
  readonly #lanes: number[] = [];
  readonly #messages: Uint8Array[] = [];
  #size = 0;

  /** How many messages it holds. */
  get length(): number {
    return this.#lanes.length;
  }

  /** The size of the items, in bytes. */
  get size(): number {
    return this.#size;
  }

  add(lane: number, message: Uint8Array): void {
    this.#lanes.push(lane);
    this.#messages.push(message);
    const item = itemSize(lane, message);
    this.#size += 1 + varintSize(item) + item;
  }

  encode(): Uint8Array {
    const bytes = Buffer.allocUnsafe(1 + varintSize(this.#size) + this.#size);
    bytes[0] = MESSAGES;
    let at = writeVarint(bytes, 1, this.#size);
    for (const [index, message] of this.#messages.entries()) at = writeItem(bytes, at, this.#lanes[index] ?? 0, message);
    return bytes;
  }
}

function writeItem(bytes: Buffer, start: number, lane: number, message: Uint8Array): number {
  let at = start;
  bytes[at++] = ITEMS;
  at = writeVarint(bytes, at, itemSize(lane, message));
  if (lane !== 0) {
    bytes[at++] = LANE;
    at = writeVarint(bytes, at, lane);
  }
  bytes[at++] = MESSAGE;
  at = writeVarint(bytes, at, message.length);
  bytes.set(message, at);
  return at + message.length;
}

function itemSize(lane: number, message: Uint8Array): number {
  return (lane === 0 ? 0 : 1 + varintSize(lane)) + 1 + varintSize(message.length) + message.length;
}

function varintSize(value: number): number {
  if (value < 0x80) return 1;
  if (value < 0x4000) return 2;
  if (value < 0x20_0000) return 3;
  return value < 0x1000_0000 ? 4 : 5;
}

function writeVarint(bytes: Buffer, start: number, value: number): number {
  let at = start;
  let rest = value;
  while (rest >= 0x80) {
    bytes[at++] = (rest & 0x7f) | 0x80;
    rest >>>= 7;
  }
  bytes[at++] = rest;
  return at;
}
