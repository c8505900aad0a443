import assert from "node:assert/strict";
import { test } from "node:test";
import { closeLane, MessagesFrame, openLane } from "../src/frames.js";
import { DeliverRequest } from "../src/generated/sidecar/api/v1/delivery_service.js";
import { LaneKey } from "../src/lanes.js";
import { buildMessage, encodeMessage } from "../src/messages.js";

test("a frame of many is what the generated code writes", () => {
  // Sizes around each length of a varint, and lanes of one and two bytes.
  const sizes = [0, 1, 100, 127, 128, 16_250, 16_384, 20_000, 2_097_152];
  const items = sizes.map((size, index) => {
    const lane = [0, 1, 127, 128, 1_023][index % 5] ?? 0;
    return { lane, message: buildMessage({ binary: new Uint8Array(size) }) };
  });
  for (const some of [items, items.slice(0, 1), items.slice(3, 5)]) {
    const frame = new MessagesFrame();
    for (const { lane, message } of some) frame.add(lane, encodeMessage(message));
    const generated = DeliverRequest.encode({ frame: { $case: "messages", value: { items: some } } }).finish();
    assert.ok(Buffer.from(generated).equals(frame.encode()));
    assert.equal(frame.length, some.length);
  }
});

test("lanes are opened and closed", () => {
  const key = new LaneKey({ isolationKey: "k", contextToken: "t", expectedUserId: "alice" });
  const opened = DeliverRequest.decode(openLane(7, key, true));
  const value = { lane: 7, isolationKey: "k", contextToken: "t", expectedUserId: "alice", reportAcknowledged: true };
  assert.deepEqual(opened.frame, { $case: "openLane", value });
  assert.deepEqual(DeliverRequest.decode(closeLane(7)).frame, { $case: "closeLane", value: { lane: 7 } });
});
