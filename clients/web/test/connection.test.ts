/** Coming, going, and what arrives: order, acknowledgements, tokens, and what a page may rely on. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { ConnectionEnded, TransportError } from "../src/index.js";
import type { ResumeState } from "../src/index.js";
import { message, stage, welcome, within } from "./scripted.js";

test("the token goes in hello, and the welcome says who this is", async (t) => {
  const scene = await stage(t);
  const connection = scene.connect({ token: () => Promise.resolve("fresh") });
  assert.equal(connection.connectionId, "");
  assert.equal(connection.resumeState, null);
  const peer = await scene.peers.take();
  assert.deepEqual(await peer.welcome(), { type: "hello", token: "fresh" });
  await within(connection.opened);
  assert.deepEqual(
    [connection.connectionId, connection.isolationKey, connection.contextToken, connection.recovery, connection.state],
    ["c-1", "key-1", "context-token-1", "new", "connected"],
  );
  assert.equal(connection.limits?.resume_window_s, 120);
});

test("messages come as they are, in order", async (t) => {
  const scene = await stage(t);
  const [, peer] = await scene.connected();
  peer.say(
    message(1, { data: { "ünïcode": ["𝄞"] } }),
    message(2, { content_type: "text", data: "text" }),
    message(3, { content_type: "binary", data: "AP+A" }),
    message(4, { event: "news", critical: true, reply_to: "q", headers: { trace: "1" }, data: null }),
    { type: "a later invention" },
  );
  assert.deepEqual(await scene.data(), { "ünïcode": ["𝄞"] });
  assert.equal(await scene.data(), "text");
  assert.deepEqual(await scene.data(), Uint8Array.of(0, 255, 128));
  assert.deepEqual(await scene.event(), {
    kind: "message",
    sequence: 4,
    id: "m-4",
    event: "news",
    contentType: "json",
    data: null,
    critical: true,
    replyTo: "q",
    stream: undefined,
    headers: { trace: "1" },
    connectionId: "c-1",
  });
});

test("a message is acknowledged when the next one is asked for, many at once", async (t) => {
  const scene = await stage(t);
  const [, peer] = await scene.connected();
  peer.say(message(1));
  await scene.event();
  assert.equal(peer.unread, 0);
  const second = scene.event();
  assert.deepEqual(await peer.frame(), { type: "ack", sequence: 1 });
  peer.say(...Array.from({ length: 300 }, (_, index) => message(index + 2)));
  await second;
  for (let sequence = 3; sequence <= 301; sequence++) await scene.event();
  const last = scene.event();
  scene.world.pass(20);
  assert.deepEqual(await peer.frame(), { type: "ack", sequence: 301 });
  peer.say(message(302));
  await last;
});

test("acknowledged by hand: what was handed out and no more", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected({ acknowledge: false });
  peer.say(message(1), message(2), message(3));
  const first = await scene.event();
  await scene.event();
  connection.acknowledge(first);
  assert.deepEqual(await peer.frame(), { type: "ack", sequence: 1 });
  scene.world.pass(20);
  connection.acknowledge();
  connection.acknowledge();
  assert.deepEqual(await peer.frame(), { type: "ack", sequence: 2 });
  assert.equal(connection.resumeState?.lastSequence, 2);
});

test("left, the context ends; detached, it waits, and says what it takes to come back", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  connection.close();
  connection.close();
  assert.equal(await within(peer.closed), 1000);
  await assert.rejects(connection.send(1), TransportError);
  for await (const event of connection) assert.fail(event.kind);
  const second = await stage(t);
  const kept: (ResumeState | null)[] = [];
  const [detaching, other] = await second.connected({ onResume: (state) => kept.push(state) });
  other.say(message(1), message(2));
  await second.event();
  await second.event();
  const state = detaching.detach();
  assert.deepEqual(state, { token: "resume-1", lastSequence: 1, attempt: 1 });
  assert.ok((await within(other.closed)) >= 3000);
  assert.deepEqual(kept.at(-1), state);
  const third = await stage(t);
  third.connect({ resume: state });
  const resumed = await third.peers.take();
  assert.deepEqual(await resumed.welcome({ recovery: "full", sequence: 1 }), {
    type: "hello",
    token: "token",
    resume: { token: "resume-1", last_sequence: 1, attempt: 2 },
  });
});

test("the context token is always the newest", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected();
  peer.say({ type: "context_token", context_token: "context-token-2", expires_at: 7 }, message(1));
  await scene.event();
  assert.deepEqual([connection.contextToken, connection.contextTokenExpiresAt], ["context-token-2", 7]);
});

test("a new user token is handed over before the old one ends", async (t) => {
  const scene = await stage(t);
  let asked = 0;
  const [, peer] = await scene.connected({ token: () => `token-${++asked}` });
  peer.say({ type: "token_expiring", expires_at: 1 });
  assert.deepEqual(await peer.frame(), { type: "refresh", token: "token-2" });
  peer.say({ type: "error", reason: "AUDIT_UNAVAILABLE", message: "" }, message(1));
  await scene.event();
  scene.world.pass(10_000);
  assert.deepEqual(await peer.frame(), { type: "refresh", token: "token-3" });
  peer.say({ type: "refreshed", expires_at: 2 }, message(2));
  await scene.event();
  scene.world.pass(60_000);
  assert.equal(asked, 3);
});

test("a fixed token has no successor", async (t) => {
  const scene = await stage(t);
  const [, peer] = await scene.connected();
  peer.say({ type: "token_expiring", expires_at: 1 }, message(1));
  await scene.event();
  peer.socket.close(4000, "token_expired");
  assert.equal((await (await scene.again()).welcome())["token"], "token");
});

test("a token function that throws is asked again, also for a refresh", async (t) => {
  const scene = await stage(t);
  let fails = true;
  const connection = scene.connect({
    token: () => {
      if (fails) throw new Error("no network");
      return "fresh";
    },
  });
  const { error } = await scene.until("waiting");
  assert.match(String(error), /no network/);
  fails = false;
  scene.world.pass(0);
  const peer = await scene.peers.take();
  await peer.welcome();
  await within(connection.opened);
  fails = true;
  peer.say({ type: "token_expiring", expires_at: 1 }, message(1));
  await scene.event();
  fails = false;
  scene.world.pass(10_000);
  assert.deepEqual(await peer.frame(), { type: "refresh", token: "fresh" });
});

test("a token function that knows there is none ends the connection", async (t) => {
  const scene = await stage(t);
  const connection = scene.connect({ token: () => Promise.reject(new ConnectionEnded(4501, "logged out")) });
  await assert.rejects(within(connection.opened), { name: "ConnectionEnded", code: 4501 });
  await assert.rejects(scene.event(), { name: "ConnectionEnded", reason: "logged out" });
  assert.equal(scene.world.listening, 0);
  assert.deepEqual(scene.world.timers, []);
});

test("no welcome in time is a try that failed", async (t) => {
  const scene = await stage(t);
  scene.connect();
  const silent = await scene.peers.take();
  await silent.frame();
  scene.world.pass(20_000);
  assert.equal(await within(silent.closed), 4400);
  await (await scene.again()).welcome();
  await scene.until("connected");
});

for (const [what, frame] of Object.entries({
  "no JSON": "no JSON",
  "no object": "[]",
  "no type": "{}",
  "a message without data": JSON.stringify({ ...message(1), data: undefined }),
  "a sequence that no number can hold": JSON.stringify(message(1)).replace('"sequence":1', '"sequence":9007199254740992'),
  "a hole": JSON.stringify(message(2)),
  "base64 that is none": JSON.stringify(message(1, { content_type: "binary", data: "*" })),
  "text that is none": JSON.stringify(message(1, { content_type: "text", data: 1 })),
  "an empty gap": JSON.stringify({ type: "gap", from: 2, to: 1, reason: "lost" }),
  "a second welcome": JSON.stringify(welcome()),
})) {
  test(`a broken sidecar never throws into the page: ${what}`, async (t) => {
    const scene = await stage(t);
    const [, peer] = await scene.connected();
    peer.say(frame);
    assert.equal(await within(peer.closed), 4400);
    const next = await scene.again();
    assert.equal((await next.welcome({ recovery: "full" }))["type"], "hello");
    next.say(message(1));
    assert.equal(await scene.data(), 1);
  });
}

test("before the welcome nothing else is taken", async (t) => {
  const scene = await stage(t);
  scene.connect();
  const peer = await scene.peers.take();
  peer.say(message(1));
  assert.equal(await within(peer.closed), 4400);
});

test("an address that is none ends the connection", async (t) => {
  const scene = await stage(t);
  const { connect } = await import("../src/index.js");
  const connection = connect("http//:", { token: "token", tuning: { scope: scene.world } });
  await assert.rejects(within(connection.opened), ConnectionEnded);
  connection.close();
});

test("without a WebSocket anywhere it says so", async () => {
  const { connect } = await import("../src/index.js");
  const { setTimeout, clearTimeout, Date, performance } = globalThis;
  const scope = { setTimeout, clearTimeout, Date, performance };
  const connection = connect("ws://127.0.0.1:1/", { token: "token", tuning: { scope } });
  await assert.rejects(within(connection.opened), /no WebSocket/);
});
