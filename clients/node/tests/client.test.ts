import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import type { Metadata } from "@grpc/grpc-js";
import { ManagerGone, OutboxFull, SidecarClient, TokenInvalid, TransportError, Unavailable } from "../src/index.js";
import { settingsFrom } from "../src/settings.js";
import { failure, rejection } from "./support/failure.js";
import { receipt, ScriptedSidecar } from "./support/sidecar.js";
import type { Refusal, Script } from "./support/sidecar.js";
import { socketAddress } from "./support/socket.js";

const TARGET = { isolationKey: "key", contextToken: "token-1" };
const DRAINING: Refusal = { code: 14, reason: "DRAINING", retryAfterS: 0.01 };
const atOnce = { uniform: () => 0 };

/** A client of a sidecar that does as the script says, for one test. */
async function using(script: Script, body: (client: SidecarClient) => Promise<void>, options = {}): Promise<void> {
  const sidecar = await ScriptedSidecar.start(script);
  const client = new SidecarClient({ endpoint: sidecar.endpoint, serviceToken: "service-1", ...atOnce, ...options });
  try {
    await body(client);
  } finally {
    await client.close();
    sidecar.stop();
  }
}

test("a message is sent with its token, and its receipt is a value", async () => {
  const seen: Metadata[] = [];
  const sendToUser: Script["sendToUser"] = (request, metadata) => {
    seen.push(metadata);
    return { receipt: receipt(request.message?.messageId ?? "", 2 ** 53 - 1, 3) };
  };
  await using({ sendToUser }, async (client) => {
    const came = await client.sendToUser(TARGET, { json: 1, messageId: "m-1" });
    assert.deepEqual(came, {
      messageId: "m-1",
      sequence: 2 ** 53 - 1,
      state: "ACKNOWLEDGED",
      durability: "MEMORY",
      connections: 1,
      duplicate: false,
      acceptedTime: 1_700_000_000.5,
    });
    assert.deepEqual(seen.map((metadata) => metadata.get("x-context-token")), [["token-1"]]);
    assert.deepEqual(seen.map((metadata) => metadata.get("x-service-token")), [[]]);
  });
});

test("a sequence that no number holds is an error, not another sequence", async () => {
  const sendToUser: Script["sendToUser"] = () => ({ receipt: receipt("m", 2 ** 53) });
  await using({ sendToUser }, async (client) => {
    assert.ok((await failure(client.sendToUser(TARGET, { json: 1 }))) instanceof TransportError);
  });
});

test("UNAVAILABLE is tried again with the same messageId, after what RetryInfo asks for", async () => {
  const ids: (string | undefined)[] = [];
  const times: number[] = [];
  const sendToUser: Script["sendToUser"] = ({ message }) => {
    ids.push(message?.messageId);
    times.push(performance.now());
    return ids.length < 3 ? { ...DRAINING, retryAfterS: 0.1 } : { receipt: receipt(message?.messageId ?? "") };
  };
  await using({ sendToUser }, async (client) => {
    const came = await client.sendToUser(TARGET, { json: 1 });
    assert.equal(ids.length, 3);
    assert.deepEqual(new Set(ids), new Set([came.messageId]));
    assert.ok((times[1] ?? 0) - (times[0] ?? 0) >= 95);
  });
});

test("four tries at most, and the last answer is the error", async () => {
  let calls = 0;
  const sendToUser: Script["sendToUser"] = () => ((calls += 1), DRAINING);
  await using({ sendToUser }, async (client) => {
    assert.equal((await failure(client.sendToUser(TARGET, { json: 1 }))).reason, "DRAINING");
    assert.equal(calls, 4);
  });
});

test("one deadline over all tries: what cannot be answered before it is not waited for", async () => {
  let calls = 0;
  const sendToUser: Script["sendToUser"] = () =>
    (calls += 1) === 1 ? { receipt: receipt("m") } : { ...DRAINING, retryAfterS: 2 };
  await using({ sendToUser }, async (client) => {
    await client.sendToUser(TARGET, { json: 0 }); // it is connected
    const began = performance.now();
    const error = await failure(client.sendToUser(TARGET, { json: 1 }, { timeoutS: 3 }));
    assert.ok(error instanceof Unavailable);
    assert.equal(calls, 3);
    assert.ok(performance.now() - began < 3_000);
  });
});

test("a deadline that passed is not tried again; the acknowledgement's time is added to it", async () => {
  let calls = 0;
  const sendToUser: Script["sendToUser"] = () => ((calls += 1) === 1 ? { receipt: receipt("m") } : "silence");
  await using({ sendToUser }, async (client) => {
    await client.sendToUser(TARGET, { json: 0 }); // it is connected
    const began = performance.now();
    const options = { timeoutS: 0.5, waitForAckS: 0.5 };
    const error = await failure(client.sendToUser(TARGET, { json: 1 }, options));
    assert.deepEqual([error.code, error.definite, calls], ["DEADLINE_EXCEEDED", false, 2]);
    assert.ok(performance.now() - began >= 990);
  });
});

test("what is the caller's to decide, or would be another, is not tried again", async () => {
  let calls = 0;
  const full: Refusal = { code: 8, reason: "OUTBOX_FULL", retryAfterS: 0.01 };
  const refuse = (refusal: Refusal) => () => ((calls += 1), refusal);
  const script: Script = {
    sendToUser: refuse(full),
    closeManager: refuse(DRAINING),
    refreshContextToken: refuse(DRAINING),
    exchangeContextToken: refuse(DRAINING),
  };
  await using(script, async (client) => {
    assert.ok((await failure(client.sendToUser(TARGET, { json: 1 }))) instanceof OutboxFull);
    await failure(client.closeManager(TARGET));
    await failure(client.refreshContextToken("token-1"));
    await failure(client.exchangeContextToken("user", "connection"));
    assert.equal(calls, 4);
  });
});

test("a refusal behind a try without an answer is not definite", async () => {
  let calls = 0;
  const sendToUser: Script["sendToUser"] = () =>
    (calls += 1) === 1 ? { code: 14, reason: "OUTCOME_UNKNOWN", retryAfterS: 0 } : { code: 5, reason: "MANAGER_GONE" };
  await using({ sendToUser }, async (client) => {
    const error = await failure(client.sendToUser(TARGET, { json: 1 }));
    assert.ok(error instanceof ManagerGone);
    assert.equal(error.definite, false);
  });
});

test("the service token goes with the calls that need it, and no other", async () => {
  const seen: Metadata[] = [];
  const keep = (_: unknown, metadata: Metadata): Refusal => (seen.push(metadata), { code: 7, reason: "SERVICE_DENIED" });
  await using({ exchangeContextToken: keep, sendBatch: keep }, async (client) => {
    await failure(client.exchangeContextToken("user", "connection", ["send"]));
    await failure(client.sendBatch([{ ...TARGET, message: { json: 1 } }]));
    assert.deepEqual(seen.map((metadata) => metadata.get("x-service-token")), [["service-1"], []]);
  });
});

test("a token that gRPC cannot carry is refused before it is sent, and not quoted", async () => {
  await using({}, async (client) => {
    const target = { ...TARGET, contextToken: "canary\nx: y" };
    const sender = client.sender();
    for (const call of [client.sendToUser(target, { json: 1 }), sender.send(target, { json: 1 }), client.getContext("canary\n")]) {
      const error = await failure(call);
      assert.ok(error instanceof TokenInvalid);
      assert.doesNotMatch(inspect(error), /canary/);
    }
  });
  await using({}, async (client) => {
    assert.ok((await failure(client.exchangeContextToken("user", "connection"))) instanceof TokenInvalid);
  }, { serviceToken: "canary\n" });
});

test("an item of a batch that cannot be sent is answered in its place", async () => {
  const sendBatch = (): { results: unknown[] } => ({ results: [{ result: { $case: "receipt", value: receipt("a") } }] });
  await using({ sendBatch }, async (client) => {
    const bad = { ...TARGET, contextToken: "a\nb", message: { json: 1 } };
    const results = await client.sendBatch([bad, { ...TARGET, message: { json: 2 } }]);
    assert.ok(results[0] instanceof TokenInvalid);
    assert.equal((results[1] as { messageId: string }).messageId, "a");
  });
});

test("a call is given up by its signal, with the signal's reason", async () => {
  await using({ sendToUser: () => "silence" }, async (client) => {
    const giveUp = new AbortController();
    const reason = new Error("enough");
    const began = performance.now();
    const call = rejection(client.sendToUser(TARGET, { json: 1 }, { signal: giveUp.signal }));
    setTimeout(() => {
      giveUp.abort(reason);
    }, 50);
    assert.equal(await call, reason);
    assert.ok(performance.now() - began < 3_000);
    assert.equal(await rejection(client.sendToUser(TARGET, { json: 1 }, { signal: giveUp.signal })), reason);
  });
});

test("a wait between two tries is given up too", async () => {
  await using({ sendToUser: () => ({ ...DRAINING, retryAfterS: 4 }) }, async (client) => {
    const began = performance.now();
    await rejection(client.sendToUser(TARGET, { json: 1 }, { signal: AbortSignal.timeout(50) }));
    assert.ok(performance.now() - began < 2_000);
  });
});

test("closing gives up what is under way, and is idempotent", async () => {
  await using({ sendToUser: () => "silence" }, async (client) => {
    const call = failure(client.sendToUser(TARGET, { json: 1 }));
    setTimeout(() => void client.close(), 50);
    assert.equal((await call).code, "CANCELLED");
    await client.close();
    assert.equal((await failure(client.sendToUser(TARGET, { json: 1 }))).code, "CANCELLED");
  });
});

test("waitUntilReady waits for a sidecar that is not started yet", async (t) => {
  const endpoint = socketAddress(t);
  const client = new SidecarClient({ endpoint, ...atOnce });
  const ready = client.waitUntilReady({ timeoutS: 10 });
  await new Promise((resolve) => setTimeout(resolve, 300));
  const sidecar = await ScriptedSidecar.start({}, endpoint);
  await ready;
  await client.close();
  sidecar.stop();
});

test("a sidecar that is back is found within the tries of a call", async (t) => {
  const endpoint = socketAddress(t);
  const client = new SidecarClient({ endpoint, ...atOnce });
  // The pause between two attempts to connect grows meanwhile.
  for (let call = 0; call < 4; call += 1) await failure(client.sendToUser(TARGET, { json: 1 }));
  const sidecar = await ScriptedSidecar.start({ sendToUser: () => ({ receipt: receipt("m") }) }, endpoint);
  await client.sendToUser(TARGET, { json: 1 });
  await client.close();
  sidecar.stop();
});

test("waitUntilReady passes over what does not serve, until its time is up", async () => {
  let asked = 0;
  const watch: Script["watch"] = (call) => {
    asked += 1;
    call.write(Buffer.from([0x08, asked < 3 ? 0x02 : 0x01]));
    if (asked < 3) call.end();
  };
  await using({ watch }, async (client) => {
    await client.waitUntilReady();
    assert.equal(asked, 3);
  });
  await using({ watch: (call) => { call.write(Buffer.from([0x08, 0x02])); } }, async (client) => {
    const error = await failure(client.waitUntilReady({ timeoutS: 0.2 }));
    assert.equal(error.code, "DEADLINE_EXCEEDED");
  });
});

test("a Unix socket is spoken to", async (t) => {
  const sidecar = await ScriptedSidecar.start({ sendToUser: () => ({ receipt: receipt("m") }) }, socketAddress(t));
  const client = new SidecarClient({ endpoint: sidecar.endpoint });
  assert.equal((await client.sendToUser(TARGET, { json: 1 })).messageId, "m");
  await client.close();
  sidecar.stop();
});

test("settings: what was given, then the environment, then the defaults", () => {
  const environment = { SIDECAR_GRPC_ENDPOINT: "unix:/run/s.sock", SIDECAR_SERVICE_TOKEN: "from-env" };
  assert.equal(settingsFrom({}, {}).endpoint, "127.0.0.1:50051");
  assert.equal(settingsFrom({}, environment).endpoint, "unix:/run/s.sock");
  assert.equal(settingsFrom({}, environment).serviceToken, "from-env");
  assert.equal(settingsFrom({ serviceToken: "" }, environment).serviceToken, "");
  assert.equal(settingsFrom({ endpoint: "a:1" }, environment).endpoint, "a:1");
  for (const bad of [{ endpoint: "nowhere" }, { timeoutS: 0 }, { maxAttempts: 0 }, { timeoutS: Number.NaN }]) {
    assert.throws(() => settingsFrom(bad, {}));
  }
});

test("no proxy of the environment is asked", async () => {
  const before = process.env["http_proxy"];
  process.env["http_proxy"] = "http://127.0.0.1:1";
  try {
    await using({ sendToUser: () => ({ receipt: receipt("m") }) }, async (client) => {
      assert.equal((await client.sendToUser(TARGET, { json: 1 })).messageId, "m");
    });
  } finally {
    if (before === undefined) delete process.env["http_proxy"];
    else process.env["http_proxy"] = before;
  }
});

test("a client prints no token", async () => {
  await using({}, async (client) => {
    assert.doesNotMatch(inspect(client, { showHidden: true, depth: 9 }), /service-1/);
    await client.close();
  });
});
