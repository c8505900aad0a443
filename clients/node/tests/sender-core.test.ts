import assert from "node:assert/strict";
import { test } from "node:test";
import type { Entry } from "../src/entry.js";
import { TransportError } from "../src/index.js";
import { DeliverRequest } from "../src/generated/sidecar/api/v1/delivery_service.js";
import { buildMessage, encodeMessage } from "../src/messages.js";
import { SenderCore } from "../src/sender-core.js";
import { limitsFrom } from "../src/sender-limits.js";

const BROKEN = new TransportError("UNAVAILABLE", "", "");

/** A core, and what became of what was added. */
function made(limits = {}) {
  const told: string[] = [];
  let left = 0;
  const nothing = (): void => undefined;
  const events = { waits: nothing, left: () => (left += 1), streamCancelled: nothing };
  const core = new SenderCore(limitsFrom(limits), false, events);
  const add = (token: string, text: string): Entry => {
    const key = core.keyOf({ isolationKey: "k", contextToken: token });
    const outcome = { resolve: () => told.push(`${text} accepted`), reject: () => told.push(`${text} failed`) };
    return core.add(key, encodeMessage(buildMessage({ text })), 0, undefined, outcome);
  };
  return { core, add, told, left: () => left };
}

/** The texts of the next frames. */
function taken(core: SenderCore): string[] {
  return core.take().flatMap((bytes) => {
    const { frame } = DeliverRequest.decode(bytes);
    if (frame?.$case !== "messages") return [];
    return frame.value.items.map(({ message }) => message?.payload.toString() ?? "");
  });
}

test("what was written goes again before what was not, in its first order", () => {
  const { core, add } = made({ maxFrameItems: 3 });
  for (const [token, text] of [["t1", "1"], ["t2", "2"], ["t1", "3"], ["t2", "4"]] as const) add(token, text);
  assert.deepEqual(taken(core), ["1", "2", "3"]);
  core.streamEnded(BROKEN, true);
  assert.deepEqual([...taken(core), ...taken(core)], ["1", "2", "3", "4"]);
});

test("without another try what was written fails, and what was not is kept", () => {
  const { core, add, told, left } = made({ maxFrameItems: 1 });
  add("t", "1");
  add("t", "2");
  taken(core);
  core.streamEnded(BROKEN, false);
  assert.deepEqual([told, left(), core.inFlight], [["1 failed"], 1, 1]);
  assert.deepEqual(taken(core), ["2"]);
  core.failAll(BROKEN);
  assert.deepEqual([told, left(), core.inFlight], [["1 failed", "2 failed"], 2, 0]);
});

test("what was given up while it was unwritten is passed over; written, it does not go again", () => {
  const { core, add, left } = made({ maxFrameItems: 1 });
  const [first, second] = [add("t", "1"), add("t", "2")];
  add("t", "3");
  taken(core);
  for (const entry of [first, second]) {
    entry.giveUp(new Error("enough"));
    core.abandon(entry);
    core.abandon(entry);
  }
  assert.deepEqual([left(), core.inFlight], [1, 2]);
  core.streamEnded(BROKEN, true);
  assert.deepEqual([taken(core), left(), core.inFlight], [["3"], 2, 1]);
});

test("a limit that cannot be is said at once", () => {
  for (const limits of [{ maxLanes: 1_025 }, { maxFrameItems: 1_001 }, { maxInFlight: 0 }, { maxFrameBytes: Number.NaN }]) {
    assert.throws(() => limitsFrom(limits), RangeError);
  }
});
