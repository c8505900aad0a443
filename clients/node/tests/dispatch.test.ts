import assert from "node:assert/strict";
import { test } from "node:test";
import { AgentContext } from "../src/agent-context.js";
import { InboundMessage } from "../src/agent-events.js";
import type { AgentEvent } from "../src/agent-events.js";
import { Answering } from "../src/answering.js";
import { Dispatcher, Handling } from "../src/dispatch.js";
import type { UserContext } from "../src/index.js";

/** Handlers that end when they are told to, and what came of them. */
class Setting {
  readonly begun: string[] = [];
  readonly ended: string[] = [];
  readonly acknowledged: string[] = [];
  room = 0;
  readonly dispatcher: Dispatcher;
  readonly #gates = new Map<string, () => void>();
  #onAcknowledged: () => void = () => undefined;

  constructor(patienceS = 600) {
    this.dispatcher = new Dispatcher({
      handle: (event) => this.#handle(event),
      onRoom: () => (this.room += 1),
      acknowledge: (deliveryId) => {
        this.acknowledged.push(deliveryId);
        this.#onAcknowledged();
      },
      patienceS,
      logger: console,
    });
  }

  async #handle(event: AgentEvent): Promise<void> {
    const { id } = event as InboundMessage;
    this.begun.push(id);
    await new Promise<void>((resolve) => this.#gates.set(id, resolve));
    this.ended.push(id);
  }

  /** A message; its delivery id is its own. */
  receive(id: string, isolationKey = "alice"): void {
    const answering = new Answering();
    const context = new AgentContext(isolationKey, {} as UserContext, { client: {} as never, sender: {} as never, now: () => 0 });
    const parts = { id, event: "message", payload: Buffer.of(), contentType: "binary", redelivered: false } as const;
    this.dispatcher.receive(new Handling(new InboundMessage(context, parts, answering), answering, id));
  }

  /** Let them end, one after the other, and the next of their contexts begin. */
  async end(...ids: readonly string[]): Promise<void> {
    for (const id of ids) {
      this.#gates.get(id)?.();
      await settle();
    }
  }

  /** Resolves when so many have been acknowledged in all. */
  async untilAcknowledged(count: number): Promise<void> {
    const hold = setInterval(() => undefined, 1_000); // as a dispatcher's timers do not
    while (this.acknowledged.length < count) await new Promise<void>((resolve) => (this.#onAcknowledged = resolve));
    clearInterval(hold);
  }
}

/** What can be done without time passing, is. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

test("what waits stays the sidecar's until it is begun", async () => {
  const setting = new Setting();
  for (const id of ["a-0", "a-1", "a-2"]) setting.receive(id);
  assert.deepEqual([setting.acknowledged, setting.room], [["a-0"], 2]);
  await setting.end("a-0");
  assert.deepEqual(setting.acknowledged, ["a-0", "a-1"]);
  await setting.end("a-1", "a-2");
  assert.deepEqual([setting.acknowledged, setting.room], [["a-0", "a-1", "a-2"], 3]);
  await setting.dispatcher.finish(60);
});

test("what waits for long is acknowledged before another worker is given it", async () => {
  const setting = new Setting(0.01);
  for (const id of ["a-0", "a-1", "a-2"]) setting.receive(id);
  await setting.untilAcknowledged(3);
  assert.deepEqual(setting.dispatcher.giveBack(), []);
  await setting.end("a-0", "a-1", "a-2");
  assert.deepEqual(setting.begun, ["a-0", "a-1", "a-2"]);
  assert.deepEqual(setting.acknowledged, ["a-0", "a-1", "a-2"]);
  await setting.dispatcher.finish(60);
});

test("what is given back is what was not acknowledged", async () => {
  const setting = new Setting(0.01);
  for (const id of ["a-0", "a-1", "a-2", "a-3"]) setting.receive(id);
  setting.receive("b-0", "bob");
  setting.dispatcher.own("alice", "a-2");
  setting.dispatcher.own("carol", "a-1");
  assert.deepEqual(setting.acknowledged, ["a-0", "b-0", "a-2"]);
  assert.deepEqual(setting.dispatcher.giveBack().map(({ deliveryId }) => deliveryId), ["a-1", "a-3"]);
  await setting.end("a-0", "a-2", "b-0");
  assert.deepEqual(setting.begun, ["a-0", "b-0", "a-2"]);
  setting.receive("c-0", "carol");
  setting.receive("c-1", "carol");
  await setting.untilAcknowledged(5);
  assert.deepEqual(setting.acknowledged.slice(3), ["c-0", "c-1"]); // and those given back never were
  await setting.end("c-0", "c-1");
  await setting.dispatcher.finish(60);
});

test("what waits when the grace is over is neither begun nor acknowledged", async () => {
  const setting = new Setting(0.01);
  setting.receive("a-0");
  setting.receive("a-1");
  const finishing = setting.dispatcher.finish(600);
  setting.dispatcher.giveUp();
  await settle();
  const later = new Setting(0.01);
  later.receive("b-0");
  later.receive("b-1");
  await later.untilAcknowledged(2);
  await setting.end("a-0");
  await finishing;
  assert.deepEqual([setting.begun, setting.acknowledged], [["a-0"], ["a-0"]]);
});
