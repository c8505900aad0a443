import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import { BadRequest, IsolationViolation, OutboxFull, SidecarClient, TokenExpired, TransportError } from "../src/index.js";
import type { Receipt, Sender, SenderOptions, StreamCancellation, Target } from "../src/index.js";
import { acceptAll, Deliver, Streams } from "./support/deliver.js";
import type { Came } from "./support/deliver.js";
import { failure, pause, rejection } from "./support/failure.js";
import { receipt, ScriptedSidecar } from "./support/sidecar.js";
import { socketAddress } from "./support/socket.js";

const ALICE: Target = { isolationKey: "alice", contextToken: "token-a", expectedUserId: "alice" };
const BOB: Target = { isolationKey: "bob", contextToken: "token-b" };

type OnCame = (deliver: Deliver, came: readonly Came[]) => void;

async function using(
  onCame: OnCame | undefined,
  options: SenderOptions,
  body: (sender: Sender, streams: Streams, client: SidecarClient) => Promise<void>,
): Promise<void> {
  const streams = new Streams(onCame);
  const sidecar = await ScriptedSidecar.start({ deliver: streams.script });
  const client = new SidecarClient({ endpoint: sidecar.endpoint, uniform: () => 0 });
  try {
    await body(client.sender(options), streams, client);
  } finally {
    await client.close();
    sidecar.stop();
  }
}

function sendAll(sender: Sender, target: Target, from: number, to: number): Promise<Receipt[]> {
  const sends = Array.from({ length: to - from }, (_, index) => sender.send(target, { json: from + index }));
  return Promise.all(sends);
}

test("what one turn sends is one frame, in order, by the lane of its token", async () => {
  await using(acceptAll, {}, async (sender, streams) => {
    const receipts = await Promise.all([sendAll(sender, ALICE, 0, 50), sendAll(sender, BOB, 50, 60)]);
    assert.deepEqual(receipts[0].map(({ sequence }) => sequence), Array.from({ length: 50 }, (_, index) => index + 1));
    const stream = await streams.nth(0);
    assert.deepEqual(stream.frames, [60]);
    assert.deepEqual(stream.texts, Array.from({ length: 60 }, (_, index) => String(index)));
    const { lane, ...opened } = stream.opened[0] ?? assert.fail();
    assert.deepEqual(opened, { ...ALICE, reportAcknowledged: false });
    assert.deepEqual(stream.opened.length, 2);
    assert.ok(stream.came.slice(0, 50).every((came) => came.lane === lane));
    assert.ok(stream.came.slice(50).every((came) => came.lane !== lane));
    await sendAll(sender, ALICE, 60, 100);
    assert.deepEqual(stream.frames, [60, 40]);
  });
});

test("while a write is under way the next ones gather", async () => {
  await using(acceptAll, {}, async (sender, streams) => {
    const first = sender.send(ALICE, { json: "first" });
    const stream = await streams.nth(0);
    await stream.until(1);
    const rest: Promise<unknown>[] = [first];
    for (let turn = 0; turn < 200; turn += 1) {
      rest.push(sender.send(ALICE, { json: turn }));
      await Promise.resolve();
    }
    await Promise.all(rest);
    assert.equal(stream.came.length, 201);
    assert.ok(stream.frames.length < 50, `${stream.frames.length} frames`);
  });
});

test("an idle sender writes at once: one message waits for no other", async () => {
  await using(acceptAll, {}, async (sender, streams) => {
    for (let n = 0; n < 5; n += 1) await sender.send(ALICE, { json: n });
    assert.deepEqual((await streams.nth(0)).frames, [1, 1, 1, 1, 1]);
  });
});

test("a frame has so many items and bytes at most, and a message too", async () => {
  await using(acceptAll, { limits: { maxFrameItems: 10, maxFrameBytes: 1_000, maxMessageBytes: 900 } }, async (sender, streams) => {
    await sendAll(sender, ALICE, 0, 25);
    assert.ok((await streams.nth(0)).frames.every((items) => items <= 10));
    await Promise.all([1, 2, 3].map(() => sender.send(ALICE, { binary: new Uint8Array(800) })));
    assert.deepEqual((await streams.nth(0)).frames.slice(-3), [1, 1, 1]);
    const error = await failure(sender.send(ALICE, { binary: new Uint8Array(900) }));
    assert.ok(error instanceof BadRequest);
    assert.equal(sender.inFlight, 0);
  });
});

test("a refusal fails its message alone and is not repeated", async () => {
  const refuse: OnCame = (deliver, came) => {
    for (const each of came) {
      if (each.message.payload.toString() === "1") deliver.refuse(each, { code: 8, reason: "OUTBOX_FULL", retryAfterS: 2 });
      else deliver.accept([each]);
    }
  };
  await using(refuse, {}, async (sender, streams) => {
    const [zero, one, two] = await Promise.allSettled([0, 1, 2].map((n) => sender.send(ALICE, { json: n })));
    assert.deepEqual([zero?.status, two?.status], ["fulfilled", "fulfilled"]);
    assert.ok(one?.status === "rejected" && one.reason instanceof OutboxFull);
    assert.equal(one.reason.retryAfterS, 2);
    assert.deepEqual((await streams.nth(0)).texts, ["0", "1", "2"]);
  });
});

test("a stream that breaks is opened again; what had no answer goes again in order, by its id", async () => {
  let breaks = 1;
  const onCame: OnCame = (deliver, came) => {
    if (breaks-- > 0) {
      const [first] = came;
      if (first !== undefined) deliver.accept([first], 1);
      setTimeout(() => {
        deliver.break();
      }, 20);
    } else acceptAll(deliver, came);
  };
  await using(onCame, {}, async (sender, streams) => {
    const sends = sendAll(sender, ALICE, 0, 20);
    await (await streams.nth(0)).until(20);
    const more = sendAll(sender, ALICE, 20, 25);
    await Promise.all([sends, more]);
    const [first, second] = [await streams.nth(0), await streams.nth(1)];
    const texts = [...first.texts.slice(0, 1), ...second.texts];
    assert.deepEqual(texts.map(Number), [...texts.map(Number)].sort((a, b) => a - b));
    assert.equal(new Set([...first.texts, ...second.texts]).size, 25);
    const ids = (deliver: Deliver): string[] => deliver.came.map(({ message }) => message.messageId);
    assert.deepEqual(ids(second).slice(0, 19), ids(first).slice(1, 20));
    assert.deepEqual(second.opened.map(({ contextToken }) => contextToken), ["token-a"]);
  });
});

test("a refusal behind an unanswered try is not definite", async () => {
  let streams = 0;
  const onCame: OnCame = (deliver, came) => {
    if ((streams += 1) === 1) deliver.break();
    else for (const each of came) deliver.refuse(each, { code: 7, reason: "ISOLATION_VIOLATION" });
  };
  await using(onCame, {}, async (sender) => {
    const error = await failure(sender.send(ALICE, { json: 1 }));
    assert.ok(error instanceof IsolationViolation);
    assert.equal(error.definite, false);
  });
});

test("a stream that is refused for good fails what was written, and the next send opens another", async () => {
  let first = true;
  const onCame: OnCame = (deliver, came) => {
    if (first) deliver.break({ code: 3, details: "a frame with none" });
    else acceptAll(deliver, came);
    first = false;
  };
  await using(onCame, {}, async (sender) => {
    assert.equal((await failure(sender.send(ALICE, { json: 1 }))).code, "INVALID_ARGUMENT");
    assert.equal((await sender.send(ALICE, { json: 2 })).sequence, 1);
  });
});

test("the deadline holds over every stream, and before there is one", async () => {
  await using((deliver) => { deliver.break(); }, {}, async (sender) => {
    const began = performance.now();
    const error = await failure(sender.send(ALICE, { json: 1 }, { timeoutS: 1 }));
    assert.deepEqual([error.code, error.definite], ["DEADLINE_EXCEEDED", false]);
    assert.ok(performance.now() - began < 4_000);
    while (sender.inFlight > 0) await pause(5); // what is written is held until its stream ends
  });
  const nobody = new SidecarClient({ endpoint: "127.0.0.1:1" });
  assert.equal((await failure(nobody.sender().send(ALICE, { json: 1 }, { timeoutS: 0.2 }))).code, "DEADLINE_EXCEEDED");
  await nobody.close();
});

test("at most so many are in flight; the others wait, in order", async () => {
  await using(undefined, { limits: { maxInFlight: 3 } }, async (sender, streams) => {
    const sends = sendAll(sender, ALICE, 0, 7);
    const stream = await streams.nth(0);
    await stream.until(3);
    await pause(50);
    assert.deepEqual([stream.texts, sender.inFlight], [["0", "1", "2"], 3]);
    stream.accept(stream.came.slice(0, 2));
    await stream.until(5);
    assert.deepEqual(stream.texts, ["0", "1", "2", "3", "4"]);
    stream.accept(stream.came.slice(2, 5));
    await stream.until(7);
    stream.accept(stream.came.slice(5));
    await sends;
  });
});

test("one that waits for room can be given up, and its deadline passes there", async () => {
  await using(undefined, { limits: { maxInFlight: 1 } }, async (sender, streams) => {
    const first = sender.send(ALICE, { json: "first" });
    const giveUp = new AbortController();
    const second = rejection(sender.send(ALICE, { json: "second" }, { signal: giveUp.signal }));
    const third = failure(sender.send(ALICE, { json: "third" }, { timeoutS: 0.1 }));
    const fourth = sender.send(ALICE, { json: "fourth" });
    const stream = await streams.nth(0);
    await stream.until(1);
    giveUp.abort(new Error("enough"));
    assert.match(String(await second), /enough/);
    assert.equal((await third).code, "DEADLINE_EXCEEDED");
    stream.accept(stream.came);
    await first;
    await stream.until(2);
    assert.deepEqual(stream.texts, ['"first"', '"fourth"']);
    stream.accept(stream.came.slice(1));
    await fourth;
  });
});

test("given up: unwritten it is not sent, written its answer is forgotten", async () => {
  await using(undefined, {}, async (sender, streams) => {
    const giveUp = new AbortController();
    const { signal } = giveUp;
    const unwritten = rejection(sender.send(ALICE, { json: "unwritten" }, { signal: AbortSignal.abort(new Error("before")) }));
    assert.match(String(await unwritten), /before/);
    const written = rejection(sender.send(ALICE, { json: "written" }, { signal }));
    const stream = await streams.nth(0);
    await stream.until(1);
    giveUp.abort(new Error("after"));
    assert.match(String(await written), /after/);
    assert.equal(sender.inFlight, 1);
    stream.accept(stream.came);
    const next = sender.send(ALICE, { json: "next" });
    await stream.until(2);
    stream.accept(stream.came.slice(1));
    await next;
    assert.deepEqual([stream.texts, sender.inFlight], [['"written"', '"next"'], 0]);
  });
});

test("one signal for many sends makes no warning and leaves no listener", async () => {
  const warnings: Error[] = [];
  const warn = (warning: Error): void => void warnings.push(warning);
  process.on("warning", warn);
  await using(acceptAll, {}, async (sender) => {
    const { signal } = new AbortController();
    await Promise.all(Array.from({ length: 200 }, () => sender.send(ALICE, { json: 1 }, { signal })));
    await pause(10);
  });
  process.off("warning", warn);
  assert.deepEqual(warnings, []);
});

test("a lane that is refused fails its messages with its own error, and nobody else's", async () => {
  const onCame: OnCame = (deliver, came) => {
    const alices = deliver.opened.find(({ isolationKey }) => isolationKey === "alice")?.lane;
    if (alices !== undefined && deliver.closed.length === 0) {
      deliver.laneError(alices, { code: 16, reason: "TOKEN_EXPIRED" });
      deliver.closed.push(alices);
    }
    for (const each of came) {
      if (each.lane === alices) deliver.refuse(each, { code: 9, reason: "LANE_NOT_OPEN" });
      else deliver.accept([each]);
    }
  };
  await using(onCame, {}, async (sender, streams) => {
    const [alices, bobs] = await Promise.allSettled([sender.send(ALICE, { json: 1 }), sender.send(BOB, { json: 2 })]);
    assert.ok(alices.status === "rejected" && alices.reason instanceof TokenExpired);
    assert.equal(bobs.status, "fulfilled");
    // The same token opens a lane of another number: numbers are not used twice.
    assert.equal((await sender.send(ALICE, { json: 3 })).sequence, 1);
    const { opened } = await streams.nth(0);
    assert.equal(new Set(opened.map(({ lane }) => lane)).size, opened.length);
  });
});

test("idle lanes give way when more tokens come, the least recent first", async () => {
  await using(acceptAll, { limits: { maxLanes: 2 } }, async (sender, streams) => {
    const to = (name: string): Promise<Receipt> => sender.send({ isolationKey: name, contextToken: `t-${name}` }, { json: name });
    for (const name of ["a", "b", "a", "c", "a", "b"]) await to(name);
    const stream = await streams.nth(0);
    const names = new Map(stream.opened.map(({ lane, isolationKey }) => [lane, isolationKey]));
    assert.deepEqual(stream.opened.map(({ isolationKey }) => isolationKey), ["a", "b", "c", "b"]);
    assert.deepEqual(stream.closed.map((lane) => names.get(lane)), ["b", "c"]);
  });
});

test("where every lane is busy a further token waits", async () => {
  await using(undefined, { limits: { maxLanes: 1 } }, async (sender, streams) => {
    const alices = sender.send(ALICE, { json: 1 });
    const bobs = sender.send(BOB, { json: 2 });
    const stream = await streams.nth(0);
    await stream.until(1);
    await pause(30);
    assert.equal(stream.came.length, 1);
    stream.accept(stream.came);
    await alices;
    await stream.until(2);
    stream.accept(stream.came.slice(1));
    await bobs;
  });
});

test("waitForAckS waits for the acknowledgement, the drop, or that long", async () => {
  await using(undefined, { reportAcknowledged: true }, async (sender, streams) => {
    const send = (n: number): Promise<Receipt> => sender.send(ALICE, { json: n }, { waitForAckS: n === 4 ? 0.1 : 10 });
    const sends = [1, 2, 3, 4].map(send);
    const stream = await streams.nth(0);
    await stream.until(4);
    const lane = stream.opened[0]?.lane ?? assert.fail();
    stream.accept(stream.came, 1);
    stream.write({ $case: "acknowledged", value: { lane, sequence: 2 } });
    stream.write({ $case: "dropped", value: { lane, from: 3, to: 3 } });
    const receipts = await Promise.all(sends);
    assert.deepEqual(receipts.map(({ state }) => state), ["ACKNOWLEDGED", "ACKNOWLEDGED", "DROPPED", "WRITTEN"]);
    assert.equal(sender.inFlight, 0);
    // Told before the receipt is told as well.
    const late = send(5);
    await stream.until(5);
    stream.write({ $case: "acknowledged", value: { lane, sequence: 5 } });
    stream.accept(stream.came.slice(4), 5);
    assert.equal((await late).state, "ACKNOWLEDGED");
  });
  await using(acceptAll, {}, async (sender) => {
    assert.ok((await rejection(sender.send(ALICE, { json: 1 }, { waitForAckS: 1 }))) instanceof TypeError);
  });
});

test("what waits for an acknowledgement is asked for again on the next stream", async () => {
  let streams = 0;
  const onCame: OnCame = (deliver, came) => {
    streams += 1;
    deliver.accept(came, 1, streams === 1 ? 2 : 3);
    if (streams === 1) setTimeout(() => { deliver.break(); }, 20);
  };
  await using(onCame, { reportAcknowledged: true }, async (sender) => {
    const came = await sender.send(ALICE, { json: 1 }, { waitForAckS: 10 });
    assert.deepEqual([came.state, streams], ["ACKNOWLEDGED", 2]);
  });
});

test("a lane's end answers what was accepted with the state that it had", async () => {
  const onCame: OnCame = (deliver, came) => {
    deliver.accept(came);
    deliver.laneError(came[0]?.lane ?? 0, { code: 16, reason: "TOKEN_EXPIRED" });
  };
  await using(onCame, { reportAcknowledged: true }, async (sender) => {
    assert.equal((await sender.send(ALICE, { json: 1 }, { waitForAckS: 10 })).state, "WRITTEN");
    assert.equal(sender.inFlight, 0);
  });
});

test("a cancelled response stream is told of", async () => {
  const told: StreamCancellation[] = [];
  const onCame: OnCame = (deliver, came) => {
    const lane = came[0]?.lane ?? 0;
    deliver.write({ $case: "streamCancelled", value: { lane, streamId: "s-1", replyTo: "q-1" } });
    deliver.write({ $case: "streamCancelled", value: { lane: lane + 99, streamId: "s-2", replyTo: "" } });
    deliver.accept(came);
  };
  await using(onCame, { onStreamCancelled: (each) => told.push(each) }, async (sender) => {
    await sender.send(ALICE, { json: 1 });
    assert.deepEqual(told, [{ isolationKey: "alice", streamId: "s-1", replyTo: "q-1" }]);
  });
});

test("close writes what is queued, half-closes, and takes no more", async () => {
  await using(acceptAll, {}, async (sender, streams) => {
    const sends = sendAll(sender, ALICE, 0, 10);
    await sender.close();
    assert.equal((await sends).length, 10);
    assert.equal((await streams.nth(0)).halfClosed, true);
    assert.match(String(await rejection(sender.send(ALICE, { json: 1 }))), /closed/);
    await sender.close();
  });
});

test("close is bounded: what has no answer by then fails CANCELLED", async () => {
  await using(undefined, {}, async (sender, streams) => {
    const sends = Promise.allSettled([sender.send(ALICE, { json: 1 }), sender.send(ALICE, { json: 2 })]);
    await (await streams.nth(0)).until(2);
    const began = performance.now();
    await sender.close({ timeoutS: 0.1 });
    assert.ok(performance.now() - began < 2_000);
    for (const outcome of await sends) {
      assert.ok(outcome.status === "rejected" && outcome.reason instanceof TransportError);
      assert.equal(outcome.reason.code, "CANCELLED");
    }
  });
});

test("close before there is a sidecar is bounded too", async () => {
  const client = new SidecarClient({ endpoint: "127.0.0.1:1" });
  const sender = client.sender();
  const send = failure(sender.send(ALICE, { json: 1 }));
  await sender.close({ timeoutS: 0.1 });
  assert.equal((await send).code, "CANCELLED");
  await client.close();
});

/** Closes it within half of what closing may take. */
async function closesSoon(it: { close(): Promise<void> }): Promise<void> {
  const began = performance.now();
  await it.close();
  const took = performance.now() - began;
  assert.ok(took < 2_500, `it took ${took} ms`);
}

test("close with nothing to do takes no time while nobody is there", async () => {
  const client = new SidecarClient({ endpoint: "127.0.0.1:1" });
  for (let n = 0; n < 3; n += 1) await failure(client.sender().send(ALICE, { json: n }, { timeoutS: 0.05 }));
  await closesSoon(client);
});

test("close with nothing to do does not wait for a stream that does not end", async () => {
  const sidecar = await ScriptedSidecar.start({
    deliver: (call) => {
      new Deliver(call, acceptAll).ends = false; // as where the connection is dead
    },
  });
  const client = new SidecarClient({ endpoint: sidecar.endpoint });
  try {
    await client.sender().send(ALICE, { json: 1 });
    await closesSoon(client);
  } finally {
    sidecar.stop();
  }
});

test("close ends with the deadline of the last message", async () => {
  const client = new SidecarClient({ endpoint: "127.0.0.1:1" });
  const sender = client.sender();
  const send = failure(sender.send(ALICE, { json: 1 }, { timeoutS: 0.3 }));
  await closesSoon(sender);
  assert.equal((await send).code, "DEADLINE_EXCEEDED");
  await client.close();
});

test("the senders of a client close side by side", async () => {
  const client = new SidecarClient({ endpoint: "127.0.0.1:1" });
  const sends = [1, 2, 3].map((n) => failure(client.sender().send(ALICE, { json: n }, { timeoutS: 60 })));
  const began = performance.now();
  await client.close();
  assert.ok(performance.now() - began < 7_000);
  for (const error of await Promise.all(sends)) assert.equal(error.code, "CANCELLED");
});

test("a sidecar that was stopped and started is sent to again", async (t) => {
  const streams = new Streams(acceptAll);
  const first = await ScriptedSidecar.start({ deliver: streams.script }, socketAddress(t));
  const client = new SidecarClient({ endpoint: first.endpoint });
  const sender = client.sender();
  await sender.send(ALICE, { json: 1 });
  first.stop();
  const send = sender.send(ALICE, { json: 2 }, { timeoutS: 10 });
  await pause(100);
  const second = await ScriptedSidecar.start({ deliver: streams.script, sendToUser: () => ({ receipt: receipt("m") }) }, first.endpoint);
  assert.equal((await send).sequence, 1);
  await client.close();
  second.stop();
});

test("a sender prints no token", async () => {
  await using(undefined, {}, async (sender, streams) => {
    const send = failure(sender.send(ALICE, { json: 1 }));
    await (await streams.nth(0)).until(1);
    assert.doesNotMatch(inspect(sender, { showHidden: true, depth: 9 }), /token-a/);
    await sender.close({ timeoutS: 0 });
    await send;
  });
});
