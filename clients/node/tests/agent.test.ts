import assert from "node:assert/strict";
import { test } from "node:test";
import { Agent, ServiceDenied, SidecarClient, StreamCancelled, SubscriptionTaken } from "../src/index.js";
import type { AgentContext, AgentEvent, AgentOptions, Logger } from "../src/index.js";
import { Attachments, eventOf, inboundOf } from "./support/attach.js";
import type { Attachment } from "./support/attach.js";
import { acceptAll, Streams } from "./support/deliver.js";
import type { Came, Deliver } from "./support/deliver.js";
import { failure, pause, rejection } from "./support/failure.js";
import { ScriptedSidecar } from "./support/sidecar.js";

/** Keeps what is logged. */
class Kept implements Logger {
  readonly texts: string[] = [];
  readonly causes: unknown[] = [];
  debug(text: string): void {
    this.texts.push(`debug ${text}`);
  }
  warn(text: string): void {
    this.texts.push(`warn ${text}`);
  }
  error(text: string, cause?: unknown): void {
    this.texts.push(`error ${text}`);
    this.causes.push(cause);
  }
}

interface Stage {
  readonly agent: Agent;
  readonly attachments: Attachments;
  readonly streams: Streams;
  readonly log: Kept;
}

type OnCame = (deliver: Deliver, came: readonly Came[]) => void;

async function using(
  body: (stage: Stage) => Promise<void>,
  { onCame = acceptAll, ...options }: AgentOptions & { onCame?: OnCame } = {},
): Promise<void> {
  const [attachments, streams, log] = [new Attachments(), new Streams(onCame), new Kept()];
  const sidecar = await ScriptedSidecar.start({ attach: attachments.script, deliver: streams.script });
  const { endpoint } = sidecar;
  const agent = new Agent("answers", { endpoint, serviceToken: "s", logger: log, uniform: () => 0, ...options });
  try {
    await body({ agent, attachments, streams, log });
  } finally {
    await agent.stop({ graceS: 0 });
    sidecar.stop();
  }
}

/** The chunks that came, as [text, index, state]. */
function chunks(stream: Deliver): (readonly [string, number | undefined, number | undefined])[] {
  return stream.came.map(({ message }) => [message.payload.toString(), message.stream?.index, message.stream?.state]);
}

test("it registers, is told, acknowledges, answers by its own token, and ends the stream with the handler", async () => {
  await using(async ({ agent, attachments, streams }) => {
    agent.onMessage("ask", async (context, message) => {
      const stream = message.reply({ eventType: "word", streamId: "s-1" });
      await stream.send({ text: String(message.data) });
      await stream.send({ text: context.user.userId });
    });
    agent.start();
    await agent.waitAttached();
    const attachment = await attachments.nth(0);
    const { serviceName, credits, subscriptions, ackTimeout } = attachment.register ?? assert.fail();
    assert.deepEqual([serviceName, credits, subscriptions, ackTimeout], ["answers", 64, [{ tenantId: "", event: "ask" }], undefined]);
    attachment.message("a", "q-1", "why?", { deliveryId: "d-1" }, "ask");
    await attachment.until(() => attachment.credits === 1);
    assert.deepEqual(attachment.acknowledged, ["d-1"]);
    const stream = await streams.nth(0);
    assert.deepEqual(chunks(stream), [["why?", 0, 1], ["user-a", 1, 1], ["", 2, 2]]);
    assert.ok(stream.came.every(({ message }) => message.replyTo === "q-1" && message.eventType === "word"));
    const { contextToken, expectedUserId } = stream.opened[0] ?? assert.fail();
    assert.deepEqual([contextToken, expectedUserId], ["token-a", "user-a"]);
  });
});

test("events of one context are handled one after the other, those of others side by side", async () => {
  await using(async ({ agent, attachments }) => {
    const seen: string[] = [];
    const doors = new Map<string, () => void>();
    agent.onOpened((context) => seen.push(`opened ${context.isolationKey}`));
    agent.onMessage(async (context, message) => {
      seen.push(`begin ${context.isolationKey} ${message.id}`);
      await new Promise<void>((resolve) => doors.set(message.id, resolve));
      seen.push(`end ${context.isolationKey} ${message.id}`);
    });
    agent.start();
    const attachment = await attachments.nth(0);
    attachment.event("a", { $case: "opened", value: {} });
    attachment.message("a", "1", "");
    attachment.message("a", "2", "");
    attachment.message("b", "3", "");
    // What waits is not: it is begun first.
    await attachment.until(() => attachment.acknowledged.length === 3 && attachment.credits === 2);
    assert.deepEqual(seen, ["opened a", "begin a 1", "begin b 3"]);
    doors.get("1")?.();
    await attachment.until(() => attachment.acknowledged.length === 4);
    assert.deepEqual(seen.slice(3), ["end a 1", "begin a 2"]);
    doors.get("2")?.();
    doors.get("3")?.();
    await attachment.until(() => attachment.credits === 4);
  });
});

test("the events of one frame are taken in their order", async () => {
  await using(async ({ agent, attachments }) => {
    const seen: string[] = [];
    agent.onMessage((_, message) => seen.push(message.id)).start();
    const attachment = await attachments.nth(0);
    const ids = ["1", "2", "3"];
    attachment.events(...ids.map((id) => eventOf("a", inboundOf(id, ""), { deliveryId: id })));
    attachment.message("a", "4", "", { deliveryId: "4" });
    await attachment.until(() => attachment.credits === 4);
    assert.deepEqual([seen, attachment.acknowledged], [[...ids, "4"], [...ids, "4"]]);
    assert.equal(attachment.register?.maxFrameEvents, 100);
  });
});

test("an event that comes again is handled once, and acknowledged each time", async () => {
  await using(async ({ agent, attachments }) => {
    const seen: string[] = [];
    agent.onMessage((_, message) => seen.push(message.id));
    agent.start();
    const first = await attachments.nth(0);
    first.message("a", "q-1", "", { deliveryId: "d-1" });
    await first.until(() => first.credits === 1);
    first.message("a", "q-1", "", { deliveryId: "d-1", redelivered: true });
    // A store kept it over the sidecar's end: another delivery_id, the client's own id.
    first.message("a", "q-1", "", { deliveryId: "d-2", redelivered: true });
    await first.until(() => first.credits === 3);
    assert.deepEqual([seen, first.acknowledged], [["q-1"], ["d-1", "d-1", "d-2"]]);
    first.message("b", "q-1", "", { redelivered: true });
    first.message("a", "", "", { redelivered: true });
    first.message("a", "", "", { redelivered: true });
    await first.until(() => first.credits === 6);
    assert.deepEqual(seen, ["q-1", "q-1", "", ""]);
  });
});

test("a kind that came after this version is acknowledged and passed over", async () => {
  await using(async ({ agent, attachments }) => {
    agent.onMessage(() => undefined).start();
    const attachment = await attachments.nth(0);
    attachment.event("a", undefined, { deliveryId: "d-new" });
    await attachment.until(() => attachment.credits === 1);
    assert.deepEqual(attachment.acknowledged, ["d-new"]);
  });
});

test("a handler that throws is logged, its stream fails, the agent goes on", async () => {
  await using(async ({ agent, attachments, streams, log }) => {
    agent.onMessage(async (_, message) => {
      await message.reply().send({ json: message.id });
      if (message.id === "1") throw new Error("the handler's own");
    });
    agent.start();
    const attachment = await attachments.nth(0);
    attachment.message("a", "1", "");
    attachment.message("a", "2", "");
    const stream = await streams.nth(0);
    await stream.until(4);
    assert.deepEqual(chunks(stream), [['"1"', 0, 1], ["", 1, 3], ['"2"', 0, 1], ["", 1, 2]]);
    assert.deepEqual(log.texts, ["error a handler failed on message"]);
    assert.match(String(log.causes[0]), /the handler's own/);
  });
});

test("a cancel reaches the handler by its signal, and its stream as StreamCancelled", async () => {
  await using(async ({ agent, attachments, streams, log }) => {
    const seen: unknown[] = [];
    agent.onMessage(async (_, message, signal) => {
      const stream = message.reply({ streamId: `s-${message.id}` });
      await stream.send({ json: 1 });
      await new Promise<void>((resolve) => {
        signal.addEventListener("abort", () => {
          resolve();
        });
      });
      seen.push(message.cancelled, signal === message.signal, stream.over);
      seen.push(await rejection(stream.send({ json: 2 })));
      throw signal.reason;
    });
    agent.start();
    const attachment = await attachments.nth(0);
    for (const [cancelled, name] of [["", "1"], ["s-2", ""]] as const) {
      const id = name || "2";
      attachment.message("a", id, "");
      await (await streams.nth(0)).until(Number(id));
      attachment.cancelled("b", cancelled, name); // another context's
      attachment.cancelled("a", cancelled, name);
      await attachment.until(() => attachment.credits === Number(id));
      assert.deepEqual(seen.slice(0, 3), [true, true, false]);
      assert.ok(seen[3] instanceof StreamCancelled);
      seen.length = 0;
    }
    // No word of it to the client, who has gone on; nor is it a failure.
    assert.deepEqual(chunks(await streams.nth(0)).map(([, , state]) => state), [1, 1]);
    assert.deepEqual(log.texts.filter((text) => !text.startsWith("debug")), []);
  });
});

test("a message that was cancelled before it came is not begun", async () => {
  await using(async ({ agent, attachments }) => {
    const seen: string[] = [];
    agent.onMessage((_, message) => seen.push(message.id));
    agent.start();
    const attachment = await attachments.nth(0);
    attachment.cancelled("a", "", "1");
    attachment.message("a", "1", "");
    attachment.message("a", "2", "");
    await attachment.until(() => attachment.credits === 2);
    assert.deepEqual([seen, attachment.acknowledged.length], [["2"], 2]);
  });
});

test("STREAM_CANCELLED from the sidecar cancels the handler too", async () => {
  const onCame: OnCame = (deliver, came) => {
    for (const each of came) deliver.refuse(each, { code: 9, reason: "STREAM_CANCELLED" });
  };
  await using(
    async ({ agent, attachments }) => {
      let cancelled = false;
      agent.onMessage(async (_, message) => {
        await rejection(message.reply().send({ json: 1 }));
        cancelled = message.signal.aborted && message.cancelled;
      });
      agent.start();
      const attachment = await attachments.nth(0);
      attachment.message("a", "1", "");
      await attachment.until(() => attachment.credits === 1);
      assert.equal(cancelled, true);
    },
    { onCame },
  );
});

test("a chunk whose fate is not known is sent again under its own index before anything else", async () => {
  let silent = true;
  const onCame: OnCame = (deliver, came) => {
    if (!silent) acceptAll(deliver, came);
  };
  await using(
    async ({ agent, attachments, streams }) => {
      agent.onMessage(async (_, message) => {
        const stream = message.reply({ timeoutS: 1 });
        assert.equal((await failure(stream.send({ text: "first" }))).code, "DEADLINE_EXCEEDED");
        silent = false;
        await stream.send({ text: "second" });
      });
      agent.start();
      const attachment = await attachments.nth(0);
      attachment.message("a", "1", "");
      await attachment.until(() => attachment.credits === 1);
      const stream = await streams.nth(0);
      assert.deepEqual(chunks(stream), [["first", 0, 1], ["first", 0, 1], ["second", 1, 1], ["", 2, 2]]);
      assert.equal(stream.came[0]?.message.messageId, stream.came[1]?.message.messageId);
    },
    { onCame },
  );
});

test("a chunk waits for a client that is slow, within its time", async () => {
  let refusals = 3;
  const onCame: OnCame = (deliver, came) => {
    for (const each of came) {
      if (refusals-- > 0) deliver.refuse(each, { code: 8, reason: "OUTBOX_FULL", retryAfterS: 0.01 });
      else deliver.accept([each]);
    }
  };
  await using(
    async ({ agent, attachments, streams }) => {
      agent.onMessage((_, message) => message.reply().send({ text: "x" }));
      agent.start();
      const attachment = await attachments.nth(0);
      attachment.message("a", "1", "");
      await attachment.until(() => attachment.credits === 1);
      assert.deepEqual(chunks(await streams.nth(0)).map(([, index]) => index), [0, 0, 0, 0, 1]);
    },
    { onCame },
  );
});

test("chunks that are not awaited keep their order", async () => {
  await using(async ({ agent, attachments, streams }) => {
    agent.onMessage(async (_, message) => {
      const stream = message.reply();
      await Promise.all([1, 2, 3].map((n) => stream.send({ json: n })));
      assert.match(String(await rejection(stream.end().then(() => stream.send({ json: 4 })))), /over/);
    });
    agent.start();
    const attachment = await attachments.nth(0);
    attachment.message("a", "1", "");
    await attachment.until(() => attachment.credits === 1);
    assert.deepEqual(chunks(await streams.nth(0)), [["1", 0, 1], ["2", 1, 1], ["3", 2, 1], ["", 3, 2]]);
  });
});

test("a break is attached again; what is in hand counts against the credits", async () => {
  await using(async ({ agent, attachments, log }) => {
    let open: () => void = () => undefined;
    agent.onMessage(() => new Promise<void>((resolve) => (open = resolve)));
    agent.start();
    const first = await attachments.nth(0);
    first.message("a", "1", "", { deliveryId: "d-1" });
    await first.until(() => first.acknowledged.length === 1);
    first.break();
    const second = await attachments.nth(1);
    await second.until(() => second.register !== undefined);
    assert.equal(second.register?.credits, 63);
    await agent.waitAttached();
    open();
    await second.until(() => second.credits === 1);
    assert.deepEqual(log.texts, ["warn not attached: UNAVAILABLE; attaching again"]);
  });
});

test("what the sidecar refuses for good ends it with that error", async () => {
  const cases = [
    [{ code: 6, reason: "SUBSCRIPTION_TAKEN" }, SubscriptionTaken],
    [{ code: 7, reason: "SERVICE_DENIED" }, ServiceDenied],
  ] as const;
  for (const [refusal, kind] of cases) {
    const attachments = new Attachments(false);
    const sidecar = await ScriptedSidecar.start({ attach: attachments.script });
    const log = new Kept();
    const agent = new Agent("answers", { endpoint: sidecar.endpoint, logger: log }).onMessage(() => undefined);
    const run = rejection(agent.run());
    const attached = rejection(agent.waitAttached());
    (await attachments.nth(0)).break(refusal);
    assert.ok((await run) instanceof kind);
    assert.ok((await attached) instanceof kind);
    assert.deepEqual(log.texts, [`error the agent is refused: ${refusal.reason}`]);
    sidecar.stop();
  }
});

test("a registration that no frame can hold is refused here", async () => {
  await using(async ({ agent }) => {
    const error = await failure(agent.onMessage("\ud800", () => undefined).run());
    assert.equal(error.reason, "BAD_REQUEST");
  });
});

test("a reader takes the events one by one; leaving the loop stops the agent", async () => {
  await using(async ({ agent, attachments, streams }) => {
    const seen: string[] = [];
    const reading = (async () => {
      for await (const event of agent) {
        seen.push(event.kind);
        if (event.kind === "message") await event.reply().send({ json: event.id });
        if (event.kind === "closed") break;
      }
    })();
    const attachment = await attachments.nth(0);
    attachment.event("a", { $case: "opened", value: {} });
    attachment.message("a", "1", "");
    // Asking for the next says that the one before is handled: its stream ends.
    await attachment.until(() => attachment.credits === 2);
    assert.deepEqual(chunks(await streams.nth(0)), [['"1"', 0, 1], ["", 1, 2]]);
    attachment.event("a", { $case: "closed", value: { code: 1000, reason: "client" } });
    await reading;
    assert.deepEqual(seen, ["opened", "message", "closed"]);
    assert.equal(attachment.left, true);
  });
});

test("what a reader has not asked for is others' when it leaves, and comes again when the call breaks", async () => {
  await using(async ({ agent, attachments }) => {
    const events = agent[Symbol.asyncIterator]();
    const reading = events.next();
    const first = await attachments.nth(0);
    for (const key of ["a", "b"]) first.message(key, `q-${key}`, "", { deliveryId: `d-${key}` });
    const read = [await reading];
    await first.until(() => first.acknowledged.length === 1);
    first.break();
    const second = await attachments.nth(1);
    for (const key of ["b", "c"]) second.message(key, `q-${key}`, "", { deliveryId: `d-${key}`, redelivered: key === "b" });
    read.push(await events.next());
    await second.until(() => second.acknowledged.length === 1);
    await events.return();
    assert.deepEqual([first.acknowledged, second.acknowledged], [["d-a"], ["d-b"]]);
    assert.deepEqual(read.map(({ value }) => value?.kind === "message" && value.id), ["q-a", "q-b"]);
  });
});

test("a stopped reader ends; a refused one throws", async () => {
  await using(async ({ agent, attachments }) => {
    const events: AgentEvent[] = [];
    const reading = (async () => {
      for await (const event of agent) events.push(event);
    })();
    await attachments.nth(0);
    await agent.waitAttached();
    await agent.stop();
    await reading;
    assert.deepEqual(events, []);
  });
});

/** A handler that answers in a stream, and ends when it is let go. */
class Held {
  readonly begun: string[] = [];
  goOn: () => void = () => undefined;

  constructor(agent: Agent) {
    const gate = new Promise<void>((resolve) => (this.goOn = resolve));
    agent.onMessage(async (_, message) => {
      this.begun.push(message.id);
      await message.reply().send({ json: 1 });
      await gate;
    });
  }
}

/** The questions of one context, by their numbers. */
function ask(attachment: Attachment, ...numbers: readonly number[]): void {
  for (const number of numbers) attachment.message("a", `q-${number}`, "", { deliveryId: `d-${number}` });
}

for (const breaks of [false, true]) {
  test(`stop leaves before the handlers end, and begins nothing that waited; the call breaks: ${breaks}`, async () => {
    await using(
      async ({ agent, attachments, streams }) => {
        const held = new Held(agent);
        const run = agent.run();
        const attachment = await attachments.nth(0);
        attachment.breaks = breaks;
        ask(attachment, 0, 1, 2);
        await attachment.until(() => attachment.credits === 2); // of what waits: it has come
        const stopping = agent.stop({ graceS: 600 });
        await attachment.until(() => attachment.left);
        held.goOn();
        await stopping;
        await run;
        assert.deepEqual([held.begun, attachment.acknowledged], [["q-0"], ["d-0"]]);
        assert.deepEqual(chunks(await streams.nth(0)).map(([, , state]) => state), [1, 2]);
        assert.equal(attachments.all.length, 1);
      },
      { graceS: 0 }, // run's own: it does not shorten that of stop
    );
  });
}

test("what waits when the agent stops is not begun though its turn comes at once", async () => {
  await using(async ({ agent, attachments }) => {
    const begun: string[] = [];
    let open: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => (open = resolve));
    agent.onMessage(async (_, message) => {
      begun.push(message.id);
      await gate;
    });
    agent.start();
    const attachment = await attachments.nth(0);
    ask(attachment, 0, 1);
    await attachment.until(() => attachment.credits === 1);
    const stopping = agent.stop({ graceS: 600 });
    open();
    await stopping;
    assert.deepEqual([begun, attachment.acknowledged], [["q-0"], ["d-0"]]);
  });
});

test("what has waited for half of its ack timeout is acknowledged, and begun though the agent stops", async () => {
  await using(
    async ({ agent, attachments }) => {
      const held = new Held(agent);
      agent.start();
      const attachment = await attachments.nth(0);
      ask(attachment, 0, 1, 2);
      await attachment.until(() => attachment.acknowledged.length === 3);
      const stopping = agent.stop({ graceS: 600 });
      await attachment.until(() => attachment.left);
      assert.deepEqual(held.begun, ["q-0"]);
      held.goOn();
      await stopping;
      assert.deepEqual(held.begun, ["q-0", "q-1", "q-2"]);
      assert.deepEqual(attachment.acknowledged, ["d-0", "d-1", "d-2"]);
    },
    { ackTimeoutS: 0.2 },
  );
});

// Another worker may have it by then.
test("what waits when the call breaks is not begun unless it comes again", async () => {
  await using(async ({ agent, attachments }) => {
    const held = new Held(agent);
    agent.start();
    const first = await attachments.nth(0);
    ask(first, 0, 1, 2);
    await first.until(() => first.credits === 2);
    first.break();
    const second = await attachments.nth(1);
    second.message("a", "q-2", "", { deliveryId: "d-2", redelivered: true });
    await second.until(() => second.credits === 1); // it has come again, and waits
    assert.deepEqual([first.acknowledged, second.acknowledged], [["d-0"], []]);
    held.goOn();
    await second.until(() => second.credits === 2);
    assert.deepEqual([held.begun, second.acknowledged], [["q-0", "q-2"], ["d-2"]]);
  });
});

test("what comes again while it waits is this process's, and begun though the call breaks", async () => {
  await using(async ({ agent, attachments }) => {
    const held = new Held(agent);
    agent.start();
    const first = await attachments.nth(0);
    ask(first, 0, 1, 2);
    first.message("a", "q-1", "", { deliveryId: "d-1", redelivered: true });
    await first.until(() => first.credits === 3);
    assert.deepEqual(new Set(first.acknowledged), new Set(["d-0", "d-1"]));
    first.break();
    const second = await attachments.nth(1);
    await agent.waitAttached();
    held.goOn();
    await second.until(() => second.credits === 1);
    assert.deepEqual([held.begun, second.acknowledged], [["q-0", "q-1"], []]);
  });
});

test("a reader is handed what was acknowledged before it ends", async () => {
  await using(
    async ({ agent, attachments }) => {
      const events = agent[Symbol.asyncIterator]();
      const first = events.next();
      const attachment = await attachments.nth(0);
      ask(attachment, 1, 2, 3);
      await attachment.until(() => attachment.acknowledged.length === 3);
      const stopping = agent.stop({ graceS: 600 });
      await attachment.until(() => attachment.left);
      const seen: string[] = [];
      for (let next = await first; next.done !== true; next = await events.next()) {
        if (next.value.kind === "message") seen.push(next.value.id);
      }
      await stopping;
      assert.deepEqual(seen, ["q-1", "q-2", "q-3"]);
    },
    { ackTimeoutS: 0.2 },
  );
});

test("stop takes no more, gives handlers their grace, then tells them to end, and fails their streams", async () => {
  await using(async ({ agent, attachments, streams }) => {
    const seen: string[] = [];
    let open: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => (open = resolve));
    agent.onMessage(async (_, message, signal) => {
      await message.reply().send({ json: message.id });
      if (message.id === "short") {
        await gate;
      } else {
        await new Promise((_resolve, reject) => {
          signal.addEventListener("abort", () => {
            reject(signal.reason as Error);
          });
        });
      }
      seen.push(message.id);
    });
    const run = agent.run();
    const attachment = await attachments.nth(0);
    attachment.message("a", "short", "");
    attachment.message("b", "endless", "");
    const stream = await streams.nth(0);
    await stream.until(2);
    const stopping = agent.stop({ graceS: 1 });
    open();
    attachment.message("c", "late", "", { deliveryId: "late" });
    await stopping;
    await run;
    assert.deepEqual(seen, ["short"]);
    assert.deepEqual(chunks(stream).slice(2), [["", 1, 2], ["", 1, 3]]);
    assert.ok(!attachment.acknowledged.includes("late"));
    assert.equal(attachment.left, true);
  });
});

test("run stops, with its grace, when its signal is aborted", async () => {
  await using(async ({ agent, attachments }) => {
    const stopping = new AbortController();
    const run = agent.onMessage(() => undefined).run({ signal: stopping.signal });
    const attachment = await attachments.nth(0);
    await agent.waitAttached();
    stopping.abort();
    await run;
    assert.equal(attachment.left, true);
  });
});

test("a context that has ended tells its handler, and takes no more", async () => {
  await using(async ({ agent, attachments }) => {
    const seen: unknown[] = [];
    let sent: () => void = () => undefined;
    const answered = new Promise<void>((resolve) => (sent = resolve));
    agent.onMessage(async (context, message, signal) => {
      await message.reply().send({ json: 1 });
      sent();
      await new Promise<void>((resolve) => {
        signal.addEventListener("abort", () => {
          resolve();
        });
      });
      seen.push(context.ended);
    });
    agent.onClosed((context, closed) => seen.push([context.ended, closed.code, closed.reason]));
    agent.start();
    const attachment = await attachments.nth(0);
    attachment.message("a", "1", "");
    await answered;
    attachment.event("a", { $case: "closed", value: { code: 4505, reason: "closed_by_service" } });
    await attachment.until(() => attachment.credits === 2);
    assert.deepEqual(seen, [true, [true, 4505, "closed_by_service"]]);
  });
});

test("a client to share is not closed with the agent", async () => {
  const attachments = new Attachments();
  const sidecar = await ScriptedSidecar.start({ attach: attachments.script });
  const client = new SidecarClient({ endpoint: sidecar.endpoint });
  const agent = new Agent("answers", { client }).start();
  await agent.waitAttached({ timeoutS: 5 });
  await agent.stop();
  await client.waitUntilReady();
  await client.close();
  sidecar.stop();
});

test("what cannot be is said at once", async () => {
  const client = new SidecarClient();
  assert.throws(() => new Agent("a", { credits: 0 }), RangeError);
  assert.throws(() => new Agent("a", { client, endpoint: "h:1" }), TypeError);
  const agent = new Agent("a", { client }).onMessage(() => undefined).onAway(() => undefined);
  assert.throws(() => agent.onMessage(() => undefined));
  assert.throws(() => agent.onAway(() => undefined));
  await rejection(agent.waitAttached());
  await client.close();
});

test("waitAttached gives up when its time is up", async () => {
  const attachments = new Attachments(false);
  const sidecar = await ScriptedSidecar.start({ attach: attachments.script });
  const agent = new Agent("answers", { endpoint: sidecar.endpoint }).onMessage(() => undefined).start();
  assert.equal((await failure(agent.waitAttached({ timeoutS: 0.1 }))).code, "DEADLINE_EXCEEDED");
  await agent.stop();
  sidecar.stop();
});

test("a context whose token was refused is refreshed again once an event has brought another", async () => {
  const attachments = new Attachments();
  const tokens = [0.5, 0.6].map((lifeS) => {
    const claims = JSON.stringify({ iat: 1_000, exp: 1_000 + lifeS });
    return `h.${Buffer.from(claims).toString("base64url")}.s`;
  });
  const asked: string[] = [];
  const sidecar = await ScriptedSidecar.start({
    attach: attachments.script,
    refreshContextToken: (_, metadata) => {
      asked.push(...metadata.get("x-context-token").map(String));
      return { code: 16, reason: "TOKEN_EXPIRED" };
    },
  });
  const held: AgentContext[] = [];
  const agent = new Agent("answers", { endpoint: sidecar.endpoint, serviceToken: "s" });
  try {
    agent.onMessage((context) => held.push(context)).start();
    const attachment = await attachments.nth(0);
    for (const [index, contextToken] of tokens.entries()) {
      attachment.message("a", `m-${index}`, "?", { contextToken });
      const end = performance.now() + 5_000;
      while (asked.length <= index && performance.now() < end) await pause(10);
      assert.deepEqual(asked, tokens.slice(0, index + 1));
    }
    assert.deepEqual([held[0] === held[1], held[0]?.ended], [true, false]);
  } finally {
    await agent.stop({ graceS: 0 });
    sidecar.stop();
  }
});
