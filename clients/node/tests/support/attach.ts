/** The sidecar's end of Attach, as a test plays it. */

import type { AttachResponse_Event } from "../../src/generated/sidecar/api/v1/agent_service.js";
import type { AttachRequest, AttachRequest_Register } from "../../src/generated/sidecar/api/v1/agent_service.js";
import { refused } from "./sidecar.js";
import type { AttachCall, Refusal } from "./sidecar.js";

/** One attachment. */
export class Attachment {
  readonly call: AttachCall;
  register: AttachRequest_Register | undefined;
  readonly acknowledged: string[] = [];
  credits = 0;
  left = false;
  /** Whether the call breaks when it is left. */
  breaks = false;
  readonly #waiting: (() => void)[] = [];

  constructor(call: AttachCall, answer: boolean) {
    this.call = call;
    call.on("error", () => undefined);
    call.on("end", () => {
      this.left = true;
      if (this.breaks) this.break();
      else call.end();
      this.#tell();
    });
    call.on("data", ({ frame }: AttachRequest) => {
      if (frame?.$case === "register") {
        this.register = frame.value;
        if (answer) call.write({ frame: { $case: "registered", value: {} } });
      }
      if (frame?.$case === "acknowledge") this.acknowledged.push(...frame.value.deliveryIds);
      if (frame?.$case === "credit") this.credits += frame.value.credits;
      this.#tell();
    });
  }

  #tell(): void {
    for (const tell of this.#waiting.splice(0)) tell();
  }

  /** Resolves when that is so. */
  async until(so: () => boolean): Promise<void> {
    while (!so()) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  event(isolationKey: string, kind: AttachResponse_Event["kind"], more: Partial<AttachResponse_Event> = {}): void {
    this.call.write({ frame: { $case: "event", value: eventOf(isolationKey, kind, more) } });
  }

  /** So many in one frame. */
  events(...items: AttachResponse_Event[]): void {
    this.call.write({ frame: { $case: "events", value: { items } } });
  }

  message(isolationKey: string, messageId: string, text: string, more: Partial<AttachResponse_Event> = {}, event = "message"): void {
    this.event(isolationKey, inboundOf(messageId, text, event), more);
  }

  cancelled(isolationKey: string, streamId: string, messageId: string): void {
    this.event(isolationKey, { $case: "cancelled", value: { streamId, messageId } }, { deliveryId: "" });
  }

  break(refusal?: Refusal): void {
    this.call.emit("error", refusal === undefined ? { code: 14, details: "gone" } : refused(refusal));
  }
}

export function inboundOf(messageId: string, text: string, eventType = "message"): AttachResponse_Event["kind"] {
  return { $case: "message", value: { messageId, eventType, payload: Buffer.from(JSON.stringify(text)), contentType: 1 } };
}

export function eventOf(
  isolationKey: string,
  kind: AttachResponse_Event["kind"],
  more: Partial<AttachResponse_Event> = {},
): AttachResponse_Event {
  return {
    deliveryId: `d-${Math.random()}`,
    redelivered: false,
    isolationKey,
    contextToken: kind?.$case === "closed" ? "" : `token-${isolationKey}`,
    context: userContext(isolationKey),
    kind,
    ...more,
  };
}

function userContext(name: string) {
  return {
    tenantId: "default",
    userId: `user-${name}`,
    sessionId: "s",
    connectionId: `c-${name}`,
    requestId: "r",
    createdTime: { seconds: 1, nanos: 0 },
    permissions: ["read"],
    metadata: {},
  };
}

/** The attachments of a test, in the order in which they came. */
export class Attachments {
  readonly all: Attachment[] = [];
  readonly #answer: boolean;
  readonly #waiting: (() => void)[] = [];

  constructor(answer = true) {
    this.#answer = answer;
  }

  readonly script = (call: AttachCall): void => {
    this.all.push(new Attachment(call, this.#answer));
    for (const tell of this.#waiting.splice(0)) tell();
  };

  async nth(index: number): Promise<Attachment> {
    for (;;) {
      const attachment = this.all[index];
      if (attachment !== undefined) return attachment;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }
}
