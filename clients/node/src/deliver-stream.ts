/** One Deliver call: writes what the core gives, one frame at a time, and hands it what the sidecar says. */

import { status as Status } from "@grpc/grpc-js";
import type { ClientDuplexStream, MethodDefinition } from "@grpc/grpc-js";
import type { BackOff } from "./back-off.js";
import type { Connection } from "./connection.js";
import { errorFromCall } from "./error-catalogue.js";
import { TransportError } from "./errors.js";
import type { SidecarError } from "./errors.js";
import { DeliveryServiceService } from "./generated/sidecar/api/v1/delivery_service.js";
import type { DeliverResponse } from "./generated/sidecar/api/v1/delivery_service.js";
import type { SenderCore } from "./sender-core.js";

/** Deliver, with requests that are bytes already. */
const DELIVER: MethodDefinition<Uint8Array, DeliverResponse> = {
  ...DeliveryServiceService.deliver,
  requestSerialize: asBuffer,
  requestDeserialize: (bytes) => bytes,
};

/** Opens the call when it is made. */
export class DeliverStream {
  /** Why it ended. Never rejects. */
  readonly ended: Promise<SidecarError>;
  readonly #core: SenderCore;
  readonly #call: ClientDuplexStream<Uint8Array, DeliverResponse>;
  #busy = false;
  #woken = false;
  #finishing = false;
  #halfClosed = false;

  constructor(connection: Connection, core: SenderCore, backOff: BackOff) {
    this.#core = core;
    this.#call = connection.stream(DELIVER, undefined);
    this.#call.on("data", (response: DeliverResponse) => {
      core.received(response);
      backOff.reset();
      this.wake(); // a lane, or room, may have become free
    });
    this.#call.on("error", () => undefined); // what it says comes again as the status
    this.ended = new Promise((resolve) => {
      this.#call.once("status", (status) => {
        this.#halfClosed = true;
        resolve(status.code === Status.OK ? new TransportError("UNAVAILABLE", "", "the stream ended") : errorFromCall(status));
      });
    });
  }

  /** There may be something to write: it is taken when all that runs now has run. */
  wake(): void {
    if (this.#busy || this.#woken) return;
    this.#woken = true;
    queueMicrotask(() => {
      this.#woken = false;
      this.#write();
    });
  }

  /** Write what is queued, then half-close. */
  finish(): void {
    this.#finishing = true;
    this.wake();
  }

  /** Give it up. */
  cancel(): void {
    this.#call.cancel();
  }

  #write(): void {
    if (this.#busy || this.#halfClosed) return;
    const frames = this.#core.take();
    const last = frames.pop();
    if (last === undefined) {
      if (this.#finishing && !this.#core.hasQueued()) this.#halfClose();
      return;
    }
    this.#busy = true;
    for (const frame of frames) this.#call.write(frame);
    this.#call.write(last, () => {
      this.#busy = false;
      this.#write();
    });
  }

  #halfClose(): void {
    this.#halfClosed = true;
    this.#call.end();
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
