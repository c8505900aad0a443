/** Coming back: after which ends, when, and with what. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { WebSocket } from "ws";
import { ConnectionEnded, TransportError } from "../src/index.js";
import type { ResumeState } from "../src/index.js";
import { message, stage, within } from "./scripted.js";

test("cut in the middle, what comes again is passed over, and nothing is missed", async (t) => {
  const scene = await stage(t);
  const [, first] = await scene.connected();
  first.say(message(1), message(2), message(3));
  assert.equal(await scene.data(), 1);
  assert.equal(await scene.data(), 2);
  first.socket.terminate();
  const second = await scene.again();
  assert.deepEqual((await second.welcome({ recovery: "full", sequence: 1 }))["resume"], {
    token: "resume-1",
    last_sequence: 1,
    attempt: 2,
  });
  second.say(message(2), message(3), message(3), message(4));
  assert.equal(await scene.data(), 3);
  assert.equal(await scene.data(), 4);
  const next = scene.data();
  scene.world.pass(20);
  second.say(message(5));
  assert.equal(await next, 5);
});

test("nothing is acknowledged above what came on this socket", async (t) => {
  const scene = await stage(t);
  const [connection, first] = await scene.connected();
  first.say(message(1), message(2), message(3));
  for (const sequence of [1, 2, 3]) assert.equal(await scene.data(), sequence);
  first.socket.terminate();
  const second = await scene.again();
  const next = scene.data();
  await second.welcome({ recovery: "full", sequence: 2 });
  await scene.until("connected");
  connection.cancel({ id: "probe" });
  assert.equal((await second.frame())["type"], "cancel", "before it no ack");
  second.say(message(3), message(4));
  assert.equal(await next, 4);
  const after = scene.data();
  scene.world.pass(20);
  assert.deepEqual(await second.frame(), { type: "ack", sequence: 3 });
  scene.world.pass(20);
  assert.deepEqual(await second.frame(), { type: "ack", sequence: 4 });
  second.say(message(5));
  await after;
});

test("a critical event that is sent again is acknowledged again", async (t) => {
  const scene = await stage(t);
  const [, peer] = await scene.connected();
  peer.say(message(1, { critical: true }));
  await scene.event();
  const next = scene.data();
  assert.deepEqual(await peer.frame(), { type: "ack", sequence: 1 });
  scene.world.pass(20);
  peer.say(message(1, { critical: true }), message(2));
  assert.equal(await next, 2);
  scene.event().catch(() => undefined);
  assert.deepEqual(await peer.frame(), { type: "ack", sequence: 1 }, "what was acknowledged is said again");
});

test("what could not be kept is said in its place", async (t) => {
  const scene = await stage(t);
  const [, first] = await scene.connected();
  first.say(message(1), { type: "gap", from: 2, to: 4, reason: "expired" }, message(5));
  assert.equal(await scene.data(), 1);
  assert.deepEqual(await scene.event(), { kind: "gap", first: 2, last: 4, reason: "expired", connectionId: "c-1" });
  assert.equal(await scene.data(), 5);
  first.socket.terminate();
  const second = await scene.again();
  await second.welcome({ recovery: "gap", sequence: 7 });
  assert.deepEqual(await scene.event(), { kind: "gap", first: 6, last: 7, reason: "lost", connectionId: "c-1" });
  second.say({ type: "gap", from: 7, to: 9, reason: "evicted" });
  assert.deepEqual(await scene.event(), { kind: "gap", first: 8, last: 9, reason: "evicted", connectionId: "c-1" });
});

test("denied: a fresh context, which says so", async (t) => {
  const scene = await stage(t);
  const kept: (ResumeState | null)[] = [];
  const [connection, first] = await scene.connected({ onResume: (state) => kept.push(state) });
  first.say(message(1), message(2));
  assert.equal(await scene.data(), 1);
  const written = connection.send("written");
  await first.frame();
  first.socket.terminate();
  await scene.until("waiting");
  const unwritten = connection.send("unwritten", { id: "later" });
  scene.world.pass(0);
  const second = await scene.peers.take();
  await second.welcome({ recovery: "denied", connection_id: "c-2", isolation_key: "key-2", resume_token: "resume-2" });
  await assert.rejects(written, (error: TransportError) => error instanceof TransportError && !error.definite);
  assert.deepEqual((await second.frame())["data"], "unwritten");
  second.say({ type: "accepted", id: "later" }, message(1, { data: "fresh" }));
  assert.deepEqual(await unwritten, { id: "later", duplicate: false });
  assert.equal(await scene.data(), 2, "what had come before is handed out before");
  assert.deepEqual(await scene.event(), { kind: "replaced", connectionId: "c-2", isolationKey: "key-2" });
  assert.equal(await scene.data(), "fresh");
  assert.equal(kept.at(-1)?.token, "resume-2");
  assert.equal(kept.at(-1)?.lastSequence, 0);
});

test("the attempt is kept before it is said, the position before it is acknowledged", async (t) => {
  const scene = await stage(t);
  const kept: (ResumeState | null)[] = [];
  scene.connect({ resume: { token: "resume-1", lastSequence: 3, attempt: 7 }, onResume: (state) => kept.push(state) });
  const peer = await scene.peers.take();
  const hello = await peer.frame();
  assert.deepEqual(hello["resume"], { token: "resume-1", last_sequence: 3, attempt: 8 });
  assert.deepEqual(kept, [{ token: "resume-1", lastSequence: 3, attempt: 8 }]);
});

test("a store that takes nothing breaks nothing", async (t) => {
  const scene = await stage(t);
  const [, peer] = await scene.connected({
    onResume: () => {
      throw new Error("quota");
    },
  });
  peer.say(message(1));
  await scene.event();
  scene.event().catch(() => undefined);
  assert.deepEqual(await peer.frame(), { type: "ack", sequence: 1 });
});

test("taken over by another tab: it is left to that one, and forgotten", async (t) => {
  const scene = await stage(t);
  const kept: (ResumeState | null)[] = [];
  const [connection, first] = await scene.connected({ onResume: (state) => kept.push(state) });
  const sending = connection.send("lost");
  await first.frame();
  first.socket.close(4503, "taken_over");
  await assert.rejects(scene.event(), { name: "ConnectionEnded", code: 4503, reason: "taken_over" });
  await assert.rejects(sending, TransportError);
  assert.deepEqual((await scene.until("closed")).code, 4503);
  assert.equal(kept.at(-1), null);
  assert.deepEqual([scene.world.timers, scene.world.listening, scene.peers.size], [[], 0, 0]);
});

const PASSING = [1001, 1012, 1013, 4000, 4001, 4002, 4003, 4005, 4321];
const FINAL = [1000, 1002, 1003, 1007, 1009, 4500, 4501, 4502, 4503, 4504, 4505, 4506, 4507, 4508, 4900, 4999];

for (const code of PASSING) {
  test(`after ${code} it comes back`, async (t) => {
    const scene = await stage(t);
    const [, peer] = await scene.connected();
    peer.socket.close(code);
    const again = await scene.again(1_000);
    assert.ok("resume" in (await again.welcome({ recovery: "full" })));
  });
}

for (const code of FINAL) {
  test(`after ${code} it does not`, async (t) => {
    const scene = await stage(t);
    const [, peer] = await scene.connected();
    peer.socket.close(code, "the text");
    await assert.rejects(scene.event(), new ConnectionEnded(code, "the text"));
    assert.equal((await scene.until("closed")).reason, "the text");
    assert.deepEqual(scene.world.timers, []);
  });
}

test("overloaded: for a second at least", async (t) => {
  const scene = await stage(t);
  const [, peer] = await scene.connected();
  peer.socket.close(1013);
  assert.equal((await scene.until("waiting")).waitMs, 1_000);
});

test("each wait is longer, up to half a minute; a socket that lived begins anew", async (t) => {
  const scene = await stage(t);
  scene.connect({ tuning: { random: () => 1 } });
  for (const waitMs of [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]) {
    (await scene.peers.take()).socket.close(1001);
    assert.equal((await scene.until("waiting")).waitMs, waitMs);
    scene.world.pass(waitMs);
  }
  const short = await scene.peers.take();
  await short.welcome();
  await scene.until("connected");
  short.socket.close(1001);
  assert.equal((await scene.until("waiting")).waitMs, 30_000);
  scene.world.pass(30_000);
  const steady = await scene.peers.take();
  await steady.welcome();
  await scene.until("connected");
  scene.world.pass(5_000);
  steady.socket.close(1001);
  assert.equal((await scene.until("waiting")).waitMs, 250);
});

test("draining: back after what was asked for, exactly, whatever happens meanwhile", async (t) => {
  const scene = await stage(t);
  const [, peer] = await scene.connected({ tuning: { random: () => 1 } });
  peer.say({ type: "draining", reconnect_in_ms: 2_730 }, message(1));
  await scene.event();
  scene.world.network(true);
  peer.socket.close(1012, "restart");
  assert.equal((await scene.until("waiting")).waitMs, 2_730);
  scene.world.look("visible");
  scene.world.pass(2_729);
  scene.world.network(true);
  assert.equal(scene.peers.size, 0);
  assert.deepEqual(scene.world.timers, [1]);
  scene.world.pass(1);
  await (await scene.peers.take()).welcome({ recovery: "full" });
  await scene.until("connected");
});

test("offline it does not hammer; back online it comes at once", async (t) => {
  const scene = await stage(t);
  const [, peer] = await scene.connected();
  scene.world.network(false);
  peer.socket.terminate();
  assert.equal((await scene.until("waiting")).waitMs, 30_000);
  scene.world.network(true);
  const again = await scene.peers.take();
  await again.welcome({ recovery: "full" });
  await scene.until("connected");
});

test("what a browser says of its network may be wrong: now and then it is tried", async (t) => {
  const scene = await stage(t);
  scene.world.navigator.onLine = false;
  const [, peer] = await scene.connected();
  peer.socket.terminate();
  await (await scene.again(30_000)).welcome({ recovery: "full" });
  await scene.until("connected");
});

test("on another network the old socket is dead, though it does not know", async (t) => {
  const scene = await stage(t);
  const [, silent] = await scene.connected();
  scene.world.network(false);
  scene.world.network(true);
  const again = await scene.peers.take();
  await again.welcome({ recovery: "full" });
  silent.say(message(1, { data: "of the old socket" }));
  again.say(message(1));
  assert.equal(await scene.data(), 1);
});

test("seen again, it waits no longer; after a long absence it takes a new socket", async (t) => {
  const scene = await stage(t);
  const [, first] = await scene.connected({ tuning: { random: () => 1 } });
  scene.world.look("hidden");
  first.socket.terminate();
  await scene.until("waiting");
  scene.world.look("visible");
  const second = await scene.peers.take();
  await second.welcome({ recovery: "full" });
  await scene.until("connected");
  scene.world.look("hidden");
  scene.world.pass(80_000);
  scene.world.look("visible");
  assert.equal(scene.peers.size, 0);
  scene.world.look("hidden");
  scene.world.pass(80_001);
  scene.world.look("visible");
  const third = await scene.peers.take();
  await third.welcome({ recovery: "full" });
  await within(second.closed);
});

test("a page that was left while it asked for a token opens nothing", async (t) => {
  const scene = await stage(t);
  let give: (token: string) => void = () => undefined;
  const connection = scene.connect({
    token: () =>
      new Promise((resolve) => {
        give = resolve;
      }),
  });
  connection.close();
  give("token");
  await assert.rejects(connection.opened, TransportError);
  const probe = new WebSocket(scene.url, ["sidecar.v1.json"]);
  await Promise.all([scene.peers.take(), once(probe, "open")]);
  assert.deepEqual([scene.world.timers, scene.peers.size], [[], 0]);
  probe.terminate();
});
