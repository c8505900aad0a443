import assert from "node:assert/strict";
import { test } from "node:test";
import { propagation } from "@opentelemetry/api";
import type { Metadata } from "@grpc/grpc-js";
import { SidecarClient } from "../src/index.js";
import { Streams } from "./support/deliver.js";
import { receipt, ScriptedSidecar } from "./support/sidecar.js";

const TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

test("the caller's trace is told with calls and streams, and nothing else of its baggage", async () => {
  const seen: Metadata[] = [];
  const streams = new Streams((deliver, came) => {
    seen.push(deliver.call.metadata);
    deliver.accept(came);
  });
  const sidecar = await ScriptedSidecar.start({
    deliver: streams.script,
    sendToUser: (_, metadata) => (seen.push(metadata), { receipt: receipt("m") }),
  });
  propagation.setGlobalPropagator({
    inject: (_, carrier) => Object.assign(carrier as object, { traceparent: TRACEPARENT, baggage: "secret=1" }),
    extract: (context) => context,
    fields: () => ["traceparent", "baggage"],
  });
  const client = new SidecarClient({ endpoint: sidecar.endpoint });
  try {
    const target = { isolationKey: "k", contextToken: "t" };
    await client.sendToUser(target, { json: 1 });
    await client.sender().send(target, { json: 1 });
    assert.equal(seen.length, 2);
    for (const metadata of seen) {
      assert.deepEqual(metadata.get("traceparent"), [TRACEPARENT]);
      assert.deepEqual(metadata.get("baggage"), []);
    }
  } finally {
    propagation.disable();
    await client.close();
    sidecar.stop();
  }
});
