/** What a user says: accepted or refused, asked again, given up. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { SidecarError, TransportError } from "../src/index.js";
import { message, stage, within } from "./scripted.js";

test("what is sent before the welcome waits for it, and is answered", async (t) => {
  const scene = await stage(t);
  const connection = scene.connect();
  const sending = connection.send({ text: "why?" }, { event: "question", id: "q-1" });
  const peer = await scene.peers.take();
  await peer.welcome();
  assert.deepEqual(await peer.frame(), { type: "message", id: "q-1", event: "question", data: { text: "why?" } });
  peer.say({ type: "accepted", id: "q-1", duplicate: true }, { type: "accepted", id: "unknown" });
  assert.deepEqual(await within(sending), { id: "q-1", duplicate: true });
});

test("an id is made up, which is one", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const sending = [connection.send(1), connection.send(null)];
  const ids = [(await peer.frame())["id"], (await peer.frame())["id"]] as string[];
  for (const id of ids) {
    assert.match(id, /^[\w.:@|-]{1,128}$/);
    peer.say({ type: "accepted", id });
  }
  await Promise.all(sending);
  assert.equal(new Set(ids).size, 2);
});

for (const [reason, definite] of [
  ["NO_AGENT", true],
  ["AGENT_BUSY", true],
  ["MESSAGE_ID_REUSED", true],
  ["LATER_INVENTION", true],
  ["OUTCOME_UNKNOWN", false],
  ["INTERNAL", false],
] as const) {
  test(`refused: ${reason}`, async (t) => {
    const scene = await stage(t);
    const [connection, peer] = await scene.connected();
    const sending = connection.send(1, { id: "q" });
    await peer.frame();
    peer.say({ type: "error", id: "q", reason, message: "the text" });
    await assert.rejects(sending, { name: "SidecarError", reason, definite, message: "the text" });
  });
}

test("without an answer it is asked again in the resumed context, with the same id", async (t) => {
  const scene = await stage(t);
  const [connection, first] = await scene.connected();
  const sending = connection.send("once", { id: "q" });
  const asked = await first.frame();
  first.socket.terminate();
  const second = await scene.again();
  await second.welcome({ recovery: "full" });
  assert.deepEqual(await second.frame(), asked);
  second.say({ type: "accepted", id: "q", duplicate: true });
  await within(sending);
  second.socket.terminate();
  const third = await scene.again();
  await third.welcome({ recovery: "full" });
  third.say(message(1));
  await scene.event();
  assert.equal(third.unread, 0);
});

test("time passes over cuts; then it may have been taken, or was not", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const written = connection.send(1);
  await peer.frame();
  peer.socket.terminate();
  await scene.until("waiting");
  const unwritten = connection.send(2, { timeoutMs: 30_000 });
  scene.world.pass(0);
  const silent = await scene.peers.take();
  scene.world.pass(30_000);
  await assert.rejects(written, { name: "TransportError", definite: false, message: "no answer in time" });
  await assert.rejects(unwritten, { name: "TransportError", definite: true });
  assert.equal(silent.unread, 0);
});

test("aborted, nobody waits any more", async (t) => {
  const scene = await stage(t);
  const connection = scene.connect();
  await assert.rejects(connection.send(1, { signal: AbortSignal.abort(new Error("before")) }), /before/);
  const control = new AbortController();
  const sending = connection.send(2, { signal: control.signal });
  control.abort(new Error("meanwhile"));
  await assert.rejects(sending, /meanwhile/);
  const peer = await scene.peers.take();
  await peer.welcome();
  const after = connection.send(3, { id: "q" });
  assert.equal((await peer.frame())["data"], 3);
  peer.say({ type: "accepted", id: "q" });
  await within(after);
});

const nested = (levels: number): unknown => (levels ? [nested(levels - 1)] : "a ] } in a text");
const cycle: unknown[] = [];
cycle.push(cycle);

for (const [what, data] of Object.entries({
  "32 levels with the frame": nested(31),
  "a pair of surrogates": "𝄞",
  "what looks like an escape": String.raw`\ud800 \\ud800`,
  "null": null,
})) {
  test(`taken as it is: ${what}`, async (t) => {
    const scene = await stage(t);
    const [connection, peer] = await scene.connected();
    const sending = connection.send(data, { id: "q" });
    assert.deepEqual((await peer.frame())["data"], data);
    peer.say({ type: "accepted", id: "q" });
    await within(sending);
  });
}

for (const [what, data] of Object.entries({
  "33 levels": nested(32),
  "a lone surrogate": "\ud800",
  "a lone surrogate behind a backslash": "\\\udfff",
  "nothing": undefined,
  "a function": () => 1,
  "a cycle": cycle,
  "a BigInt": 1n,
  "a frame over the limit": "€".repeat(65_536 / 3),
})) {
  test(`refused before it ends the socket: ${what}`, async (t) => {
    const scene = await stage(t);
    const [connection, peer] = await scene.connected();
    await assert.rejects(connection.send(data), { reason: "BAD_REQUEST", definite: true });
    peer.say(message(1));
    await scene.event();
    assert.equal(peer.unread, 0);
  });
}

test("ids and events are identifiers, and an id waits for one answer", async (t) => {
  const scene = await stage(t);
  const connection = scene.connect();
  for (const options of [{ id: "" }, { id: "a b" }, { id: "x".repeat(129) }, { event: "" }, { event: "é" }]) {
    await assert.rejects(connection.send(1, options), { reason: "BAD_REQUEST" });
  }
  const first = connection.send(1, { id: "q" });
  await assert.rejects(connection.send(1, { id: "q" }), { reason: "BAD_REQUEST" });
  connection.close();
  await assert.rejects(first, TransportError);
  assert.throws(() => {
    connection.cancel({});
  }, SidecarError);
});

test("256 messages may wait for their answer, and no more", async (t) => {
  const scene = await stage(t);
  const connection = scene.connect();
  const sending = Promise.allSettled(Array.from({ length: 256 }, () => connection.send(1)));
  await assert.rejects(connection.send(1), { reason: "RATE_LIMITED", definite: true });
  connection.close();
  assert.ok((await sending).every(({ status }) => status === "rejected"));
});

test("a cancel is said, also after a cut", async (t) => {
  const scene = await stage(t);
  const [connection, first] = await scene.connected();
  connection.cancel({ id: "q", streamId: "s" });
  assert.deepEqual(await first.frame(), { type: "cancel", id: "q", stream_id: "s" });
  first.socket.terminate();
  await scene.until("waiting");
  connection.cancel({ streamId: "s" });
  scene.world.pass(0);
  const second = await scene.peers.take();
  await second.welcome({ recovery: "full" });
  assert.deepEqual(await second.frame(), { type: "cancel", stream_id: "s" });
});

test("it writes no faster than the sidecar takes it", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const sending = Promise.allSettled(Array.from({ length: 120 }, (_, index) => connection.send(index)));
  for (let index = 0; index < 50; index++) assert.equal((await peer.frame())["data"], index);
  peer.say(message(1));
  await scene.event();
  assert.equal(peer.unread, 0);
  scene.world.pass(1_000);
  for (let index = 50; index < 100; index++) assert.equal((await peer.frame())["data"], index);
  connection.close();
  await sending;
});
