/** Consumers that do not keep up: nothing is lost, and nothing grows without a bound. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { message, nextOf, part, stage, within } from "./scripted.js";

test("when the buffer is full it leaves the socket, and comes back for the rest", async (t) => {
  const scene = await stage(t);
  const [, first] = await scene.connected({ tuning: { maxEvents: 4 } });
  first.say(...Array.from({ length: 9 }, (_, index) => message(index + 1)));
  assert.equal((await scene.until("paused")).waitMs, 60_000);
  assert.ok((await within(first.closed)) >= 3_000);
  assert.equal(await scene.data(), 1);
  assert.equal(scene.peers.size, 0);
  assert.equal(await scene.data(), 2);
  const second = await scene.peers.take();
  const hello = await second.welcome({ recovery: "full", sequence: 1 });
  assert.deepEqual(hello["resume"], { token: "resume-1", last_sequence: 1, attempt: 2 });
  second.say(...Array.from({ length: 3 }, (_, index) => message(index + 2)), message(5));
  for (const sequence of [3, 4, 5]) assert.equal(await scene.data(), sequence);
  assert.equal((await scene.until("connected")).waitMs, undefined);
});

test("a consumer that stands still for long keeps its context", async (t) => {
  const scene = await stage(t);
  const [, first] = await scene.connected({ tuning: { maxBuffered: 100 } });
  first.say(message(1, { data: "x".repeat(100) }));
  await scene.until("paused");
  scene.world.pass(60_000);
  const second = await scene.peers.take();
  await second.welcome({ recovery: "full" });
  second.say(message(1), message(2));
  await scene.until("paused");
  await within(second.closed);
  assert.equal(await scene.data(), "x".repeat(100));
});

test("where nobody reads the connection, what is for nobody is let go", async (t) => {
  const scene = await stage(t);
  const [connection, peer] = await scene.connected({ events: false, tuning: { maxEvents: 2 } });
  const reply = connection.ask("why?", { id: "q" });
  await peer.frame();
  peer.say({ type: "accepted", id: "q" });
  peer.say(...Array.from({ length: 9 }, (_, index) => message(index + 1)));
  peer.say({ type: "gap", from: 10, to: 10, reason: "expired" }, part(11, 0, { reply_to: "q" }, { state: "end" }));
  assert.equal(await nextOf(reply), 11);
  assert.equal(connection.resumeState?.lastSequence, 10);
  assert.equal(connection.state, "connected");
});
