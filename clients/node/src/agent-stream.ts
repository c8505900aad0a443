/** One Attach call: registers the worker, hands its events on, says what is acknowledged and how many more may come. */

import { status as Status } from "@grpc/grpc-js";
import type { ClientDuplexStream } from "@grpc/grpc-js";
import { asService } from "./calls.js";
import type { Connection } from "./connection.js";
import { errorFromCall } from "./error-catalogue.js";
import { TransportError } from "./errors.js";
import type { SidecarError } from "./errors.js";
import { AgentServiceService } from "./generated/sidecar/api/v1/agent_service.js";
import type {
  AttachRequest,
  AttachRequest_Register,
  AttachResponse,
  AttachResponse_Event,
} from "./generated/sidecar/api/v1/agent_service.js";
import { duration, text } from "./messages.js";

/** Delivery ids in one frame. */
const MAX_ACKNOWLEDGED = 10_000;
/** Events in one frame, as many as the sidecar puts in one. */
const MAX_FRAME_EVENTS = 100;

/** The sidecar's. */
const DEFAULT_ACK_TIMEOUT_S = 60;
/** Of that time: so long an event that waits for its handler may go to another worker, should this one be lost. */
const PATIENCE_SHARE = 0.5;

/** What a service takes: the messages of that event. */
export interface Subscription {
  /** `*` is whatever no other service takes. Default: `*`. */
  readonly event?: string | undefined;
  /** Default: every tenant that the service may have. */
  readonly tenantId?: string | undefined;
}

/** Who the worker is and what it takes. */
export interface Registration {
  readonly serviceName: string;
  readonly subscriptions: readonly Subscription[];
  readonly ackTimeoutS: number | undefined;
}

/** How long an event may wait for its handler without being acknowledged, in seconds. */
export function patienceS({ ackTimeoutS = DEFAULT_ACK_TIMEOUT_S }: Registration): number {
  return PATIENCE_SHARE * ackTimeoutS;
}

/** What the call tells of. */
export interface StreamEvents {
  registered(): void;
  event(event: AttachResponse_Event): void;
}

/** Opens the call when it is made. What is to be said gathers while a write is under way. */
export class AgentStream {
  /** Why it ended; undefined after `leave`. Never rejects. */
  readonly ended: Promise<SidecarError | undefined>;
  readonly #call: ClientDuplexStream<AttachRequest, AttachResponse>;
  #acknowledged: string[] = [];
  #credit = 0;
  #busy = false;
  #woken = false;
  #leaving = false;
  #over = false;

  /** Throws BadRequest for a registration that no frame can hold. */
  constructor(connection: Connection, registration: Registration, credits: number, events: StreamEvents) {
    const value = registerFrame(registration, credits);
    this.#call = connection.stream(AgentServiceService.attach, asService(connection.settings.serviceToken));
    this.#call.on("data", ({ frame }: AttachResponse) => {
      if (frame?.$case === "registered") events.registered();
      else if (frame?.$case === "event") events.event(frame.value);
      else if (frame?.$case === "events") for (const event of frame.value.items) events.event(event);
    });
    this.#call.on("error", () => undefined); // what it says comes again as the status
    this.ended = new Promise((resolve) => {
      this.#call.once("status", (status) => {
        this.#over = true;
        const without = this.#leaving ? undefined : new TransportError("UNAVAILABLE", "", "the stream ended");
        resolve(status.code === Status.OK ? without : errorFromCall(status));
      });
    });
    this.#put({ frame: { $case: "register", value } });
  }

  /** Say "mine" of that event. */
  acknowledge(deliveryId: string): void {
    this.#acknowledged.push(deliveryId);
    this.#wake();
  }

  /** Let so many more come. */
  credit(amount: number): void {
    this.#credit += amount;
    this.#wake();
  }

  /** Say what is still to be said, then half-close; the sidecar then ends the call. Idempotent. */
  leave(): void {
    this.#leaving = true;
    this.#wake();
  }

  /** Give it up. */
  cancel(): void {
    this.#call.cancel();
  }

  #wake(): void {
    if (this.#busy || this.#woken) return;
    this.#woken = true;
    queueMicrotask(() => {
      this.#woken = false;
      this.#write();
    });
  }

  #write(): void {
    if (this.#busy || this.#over) return;
    const frames = this.#take();
    const last = frames.pop();
    if (last !== undefined) {
      for (const frame of frames) this.#call.write(frame);
      this.#put(last);
    } else if (this.#leaving) {
      this.#over = true;
      this.#call.end();
    }
  }

  #put(frame: AttachRequest): void {
    this.#busy = true;
    this.#call.write(frame, () => {
      this.#busy = false;
      this.#write();
    });
  }

  #take(): AttachRequest[] {
    const frames: AttachRequest[] = [];
    while (this.#acknowledged.length > 0) {
      const value = { deliveryIds: this.#acknowledged.splice(0, MAX_ACKNOWLEDGED) };
      frames.push({ frame: { $case: "acknowledge", value } });
    }
    if (this.#credit > 0) frames.push({ frame: { $case: "credit", value: { credits: this.#credit } } });
    this.#credit = 0;
    return frames;
  }
}

function registerFrame(registration: Registration, credits: number): AttachRequest_Register {
  const { ackTimeoutS } = registration;
  return {
    serviceName: text(registration.serviceName, "register.service_name"),
    subscriptions: registration.subscriptions.map(({ tenantId, event = "*" }) => ({
      tenantId: text(tenantId, "register.subscriptions.tenant_id"),
      event: text(event, "register.subscriptions.event"),
    })),
    credits,
    ackTimeout: ackTimeoutS === undefined ? undefined : duration(ackTimeoutS, "register.ack_timeout"),
    maxFrameEvents: MAX_FRAME_EVENTS,
  };
}
