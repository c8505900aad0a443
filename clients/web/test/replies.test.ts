/** Answers as async iterables: whose a message is, where an answer ends, and what a cut does to it. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { StreamFailed } from "../src/index.js";
import type { ReplyStream } from "../src/index.js";
import { message, nextOf, part, stage, within } from "./scripted.js";
import type { Peer } from "./scripted.js";

async function texts(reply: ReplyStream): Promise<unknown[]> {
  const parts = [];
  for await (const each of reply) parts.push(each.data);
  return parts;
}

const answering = { reply_to: "q" };

async function accept(peer: Peer): Promise<void> {
  assert.equal((await peer.said("message"))["id"], "q");
  peer.say({ type: "accepted", id: "q" });
}

test("an answer is read to its end, beside what is for others", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = connection.ask("why?", { id: "q", event: "question" });
  await accept(peer);
  peer.say(
    part(1, 0, { ...answering, data: "be" }),
    message(2, { data: "news" }),
    part(3, 1, { ...answering, data: "cause" }),
    part(4, 2, { ...answering, data: null }, { state: "end" }),
    message(5, { ...answering, data: "behind its end" }),
  );
  assert.deepEqual(await within(texts(reply)), ["be", "cause"]);
  assert.deepEqual([reply.replyTo, reply.streamId], ["q", "answer"]);
  assert.equal(await scene.data(), "news");
  assert.equal(await scene.data(), "behind its end");
  scene.event().catch(() => undefined);
  scene.world.pass(20);
  let last = await peer.frame();
  while (last["sequence"] !== 5) last = await peer.frame();
});

test("its last part may say something; an answer may be one message", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = connection.ask("why?", { id: "q" });
  await accept(peer);
  peer.say(part(1, 0, { ...answering, data: "all" }, { state: "end" }));
  assert.deepEqual(await within(texts(reply)), ["all"]);
  const second = connection.ask("why?", { id: "q" });
  await accept(peer);
  peer.say(message(2, { ...answering, data: null }));
  assert.deepEqual(await within(texts(second)), [null]);
});

test("nothing is acknowledged before it is read, wherever it is read", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = connection.ask("why?", { id: "q" });
  await accept(peer);
  peer.say(part(1, 0, answering), message(2), message(3));
  assert.equal(await scene.data(), 2);
  assert.equal(await scene.data(), 3);
  scene.world.pass(1_000);
  assert.equal(connection.resumeState?.lastSequence, 0);
  await reply.next();
  reply.next().catch(() => undefined);
  assert.deepEqual(await peer.frame(), { type: "ack", sequence: 2 });
});

test("an answer survives a cut, each part once", async (t) => {
  const scene = await stage(t);
  const [connection, first] = await scene.connected();
  const reply = texts(connection.ask("why?", { id: "q" }));
  await accept(first);
  first.say(part(1, 0, answering), part(2, 1, answering));
  await first.frame();
  first.socket.terminate();
  const second = await scene.again();
  await second.welcome({ recovery: "full", sequence: 1 });
  second.say(part(2, 1, answering), part(3, 2, answering), part(4, 3, answering, { state: "end" }));
  assert.deepEqual(await within(reply), [1, 2, 3, 4]);
});

test("after a reload it goes on where it was", async (t) => {
  const scene = await stage(t);
  const connection = scene.connect({ resume: { token: "resume-1", lastSequence: 5, attempt: 1 } });
  const reply = texts(connection.ask("why?", { id: "q" }));
  const peer = await scene.peers.take();
  await peer.welcome({ recovery: "full", sequence: 5 });
  peer.say(part(6, 5, answering), { type: "accepted", id: "q", duplicate: true }, part(7, 6, answering, { state: "end" }));
  assert.deepEqual(await within(reply), [6, 7]);
});

test("an answer that fails throws, behind what there is of it", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = connection.ask("why?", { id: "q" });
  await accept(peer);
  peer.say(part(1, 0, answering), part(2, 1, { ...answering, data: "broke" }, { state: "error" }));
  assert.equal(await nextOf(reply), 1);
  await assert.rejects(within(reply.next()), { name: "StreamFailed", reason: "STREAM_FAILED", data: "broke" });
  scene.event().catch(() => undefined);
  assert.deepEqual(await peer.frame(), { type: "ack", sequence: 2 });
});

test("a question that is refused throws", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = connection.ask("why?", { id: "q" });
  await peer.frame();
  peer.say({ type: "error", id: "q", reason: "NO_AGENT", message: "" });
  await assert.rejects(within(reply.next()), { reason: "NO_AGENT" });
});

test("a lost part ends the answer, and the agent is told", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = connection.ask("why?", { id: "q" });
  await accept(peer);
  peer.say(part(1, 0, answering), { type: "gap", from: 2, to: 2, reason: "expired" }, part(3, 2, answering));
  assert.equal(await nextOf(reply), 1);
  await assert.rejects(within(reply.next()), { name: "StreamFailed", reason: "GAP" });
  assert.deepEqual((await scene.event()).kind, "gap");
  assert.deepEqual(await peer.said("cancel"), { type: "cancel", id: "q" });
});

test("a gap of others' messages is none of the answer's", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = texts(connection.ask("why?", { id: "q" }));
  await accept(peer);
  peer.say(part(1, 0, answering), { type: "gap", from: 2, to: 2, reason: "expired" });
  peer.say(part(3, 1, answering, { state: "end" }));
  assert.deepEqual(await within(reply), [1, 3]);
  assert.ok(!scene.world.timers.includes(130_000));
});

test("behind a gap, silence is a lost end", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = connection.ask("why?", { id: "q" });
  await accept(peer);
  peer.say({ type: "gap", from: 1, to: 2, reason: "expired" });
  assert.equal((await scene.event()).kind, "gap");
  scene.world.pass(130_000);
  await assert.rejects(within(reply.next()), { reason: "GAP" });
});

test("a fresh context has no more of it", async (t) => {
  const scene = await stage(t);
  const [connection, first] = await scene.connected();
  const reply = connection.ask("why?", { id: "q" });
  await accept(first);
  first.socket.terminate();
  await scene.until("waiting");
  const later = connection.ask("and then?", { id: "q2" });
  scene.world.pass(0);
  const second = await scene.peers.take();
  await second.welcome({ recovery: "denied", connection_id: "c-2" });
  await assert.rejects(within(reply.next()), { name: "StreamFailed", reason: "REPLACED" });
  assert.equal((await second.frame())["id"], "q2");
  second.say({ type: "accepted", id: "q2" }, message(1, { reply_to: "q2" }));
  assert.deepEqual(await within(texts(later)), [1]);
});

test("left, an answer is cancelled, and what still comes of it is let go", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = connection.ask("why?", { id: "q" });
  await accept(peer);
  peer.say(part(1, 0, answering), part(2, 1, answering));
  for await (const each of reply) {
    assert.equal(each.data, 1);
    break;
  }
  assert.deepEqual(await peer.said("cancel"), { type: "cancel", id: "q" });
  peer.say(part(3, 2, answering), part(4, 3, answering, { state: "error" }), message(5));
  assert.equal(await scene.data(), 5);
  scene.world.pass(20);
  assert.equal(connection.resumeState?.lastSequence, 4);
  assert.deepEqual(await within(texts(reply)), []);
});

test("a signal ends it, and what was never said is not taken back", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const control = new AbortController();
  const reply = connection.ask("why?", { id: "q", signal: control.signal });
  await accept(peer);
  peer.say(part(1, 0, answering));
  await reply.next();
  control.abort(new Error("enough"));
  await assert.rejects(within(reply.next()), /enough/);
  await peer.said("cancel");
  peer.socket.terminate();
  await scene.until("waiting");
  connection.ask("never mind", { id: "q2" }).cancel();
  scene.world.pass(0);
  const second = await scene.peers.take();
  await second.welcome({ recovery: "full", sequence: 1 });
  second.say(message(2));
  await scene.event();
  assert.equal(second.unread, 0);
});

test("cancelled behind its failure, nothing is thrown at nobody", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = connection.ask("why?", { id: "q" });
  await accept(peer);
  peer.say(part(1, 0, answering), part(2, 1, answering, { state: "error" }), message(3));
  await scene.event();
  reply.cancel();
  reply.cancel();
  await assert.rejects(within(reply.next()), StreamFailed);
});

test("asked twice, the first reader is told", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const first = connection.ask("why?", { id: "q" });
  await accept(peer);
  peer.say(message(1));
  await scene.event();
  const second = connection.ask("why?", { id: "q" });
  await assert.rejects(within(first.next()), StreamFailed);
  await accept(peer);
  peer.say(message(2, answering));
  assert.deepEqual(await within(texts(second)), [2]);
});

test("streams that nobody asked for, as they arrive", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const arriving = connection.streams();
  const reply = connection.ask("why?", { id: "q" });
  await accept(peer);
  peer.say(
    part(1, 0, {}, { id: "a" }),
    part(2, 0, answering, { id: "mine" }),
    part(3, 0, answering, { id: "second" }),
    part(4, 1, {}, { id: "a", state: "end" }),
    part(5, 1, answering, { id: "mine", state: "end" }),
    part(6, 1, answering, { id: "second", state: "end" }),
    message(7),
  );
  const found: unknown[] = [];
  for await (const stream of arriving) {
    found.push([stream.streamId, stream.replyTo, await texts(stream)]);
    if (found.length === 2) break;
  }
  assert.deepEqual(found, [
    ["a", "", [1, 4]],
    ["second", "q", [3, 6]],
  ]);
  assert.deepEqual(await within(texts(reply)), [2, 5]);
  assert.equal(await scene.data(), 7);
  peer.say(part(8, 0, {}, { id: "later" }));
  assert.equal((await scene.event()).kind, "message");
});

test("the end of the connection ends its answers", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  const reply = connection.ask("why?", { id: "q" });
  const arriving = connection.streams();
  await accept(peer);
  peer.socket.close(4505, "closed_by_service");
  await assert.rejects(within(reply.next()), { name: "ConnectionEnded", code: 4505 });
  await assert.rejects(within(arriving.next()), { name: "ConnectionEnded", code: 4505 });
  await assert.rejects(within(connection.streams().next()), { code: 4505 });
  await assert.rejects(within(connection.ask(1).next()), { code: 4505 });
});
