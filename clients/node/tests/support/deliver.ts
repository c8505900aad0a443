/** The sidecar's end of Deliver, as a test plays it: keeps what came, answers when it is told to. */

import assert from "node:assert/strict";
import type {
  DeliverRequest,
  DeliverResponse,
  DeliverResponse_LaneReceipt,
} from "../../src/generated/sidecar/api/v1/delivery_service.js";
import type { Message } from "../../src/generated/sidecar/api/v1/types.js";
import { receipt, statusOf } from "./sidecar.js";
import type { DeliverCall, Refusal } from "./sidecar.js";

/** One message as it came. */
export interface Came {
  readonly lane: number;
  readonly number: number;
  readonly message: Message;
}

/** One stream. */
export class Deliver {
  readonly call: DeliverCall;
  /** How many messages each frame had. */
  readonly frames: number[] = [];
  readonly came: Came[] = [];
  readonly opened: { lane: number; isolationKey: string; contextToken: string; expectedUserId: string }[] = [];
  readonly closed: number[] = [];
  halfClosed = false;
  /** Whether it ends when it is half-closed. */
  ends = true;
  readonly #next = new Map<number, number>();
  readonly #waiting: (() => void)[] = [];

  constructor(call: DeliverCall, onCame: (deliver: Deliver, came: readonly Came[]) => void = () => undefined) {
    this.call = call;
    call.on("error", () => undefined);
    call.on("end", () => {
      this.halfClosed = true;
      if (this.ends) call.end();
    });
    call.on("data", ({ frame }: DeliverRequest) => {
      if (frame?.$case === "openLane") this.opened.push(frame.value);
      if (frame?.$case === "closeLane") this.closed.push(frame.value.lane);
      if (frame?.$case === "messages") {
        const came = frame.value.items.map(({ lane, message }) => this.#number(lane, message ?? assert.fail("no message")));
        this.frames.push(came.length);
        this.came.push(...came);
        onCame(this, came);
      }
      for (const tell of this.#waiting.splice(0)) tell();
    });
  }

  #number(lane: number, message: Message): Came {
    const number = this.#next.get(lane) ?? 0;
    this.#next.set(lane, number + 1);
    return { lane, number, message };
  }

  get texts(): string[] {
    return this.came.map(({ message }) => message.payload.toString());
  }

  /** Resolves when so many messages have come. */
  async until(count: number): Promise<void> {
    while (this.came.length < count) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  write(frame: DeliverResponse["frame"]): void {
    this.call.write({ frame });
  }

  accept(came: readonly Came[], sequence = 1, state = 2): void {
    const items = came.map(({ lane, number, message }, index): DeliverResponse_LaneReceipt => {
      const value = receipt(message.messageId, sequence + index, state);
      return { lane, number, result: { $case: "receipt", value } };
    });
    this.write({ $case: "receipts", value: { items } });
  }

  refuse({ lane, number }: Came, refusal: Refusal): void {
    const items = [{ lane, number, result: { $case: "error", value: statusOf(refusal) } as const }];
    this.write({ $case: "receipts", value: { items } });
  }

  laneError(lane: number, refusal: Refusal): void {
    this.write({ $case: "laneError", value: { lane, error: statusOf(refusal) } });
  }

  /** The stream breaks. */
  break(refusal?: { code: number; details: string }): void {
    this.call.emit("error", refusal ?? { code: 14, details: "gone" });
  }
}

/** The streams of a test, in the order in which they were opened. */
export class Streams {
  readonly all: Deliver[] = [];
  readonly #onCame: ((deliver: Deliver, came: readonly Came[]) => void) | undefined;
  readonly #waiting: (() => void)[] = [];

  constructor(onCame?: (deliver: Deliver, came: readonly Came[]) => void) {
    this.#onCame = onCame;
  }

  readonly script = (call: DeliverCall): void => {
    this.all.push(new Deliver(call, this.#onCame));
    for (const tell of this.#waiting.splice(0)) tell();
  };

  async nth(index: number): Promise<Deliver> {
    for (;;) {
      const stream = this.all[index];
      if (stream !== undefined) return stream;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }
}

/** Accepts everything at once. */
export function acceptAll(deliver: Deliver, came: readonly Came[]): void {
  deliver.accept(came, deliver.came.length - came.length + 1);
}
