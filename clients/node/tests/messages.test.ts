import assert from "node:assert/strict";
import { inspect } from "node:util";
import { test } from "node:test";
import { BadRequest, ContextToken, TokenInvalid } from "../src/index.js";
import type { OutgoingMessage } from "../src/index.js";
import { Message } from "../src/generated/sidecar/api/v1/types.js";
import { buildMessage, checkToken, duration, encodeMessage, newMessageId } from "../src/messages.js";

test("each content has its bytes and its type", () => {
  const cases: [OutgoingMessage, string, number][] = [
    [{ json: { a: [1, null, "ä"] } }, '{"a":[1,null,"ä"]}', 1],
    [{ json: null }, "null", 1],
    [{ text: "grüße 👋" }, "grüße 👋", 2],
    [{ binary: Uint8Array.of(104, 105) }, "hi", 3],
    [{ payload: Buffer.from("[1]") }, "[1]", 1],
    [{ payload: Buffer.from("x"), contentType: "text" }, "x", 2],
    [{ text: "" }, "", 2],
  ];
  for (const [message, payload, contentType] of cases) {
    const built = buildMessage(message);
    assert.deepEqual([built.payload.toString(), built.contentType], [payload, contentType]);
  }
});

test("exactly one content is given", () => {
  const none = {} as OutgoingMessage;
  const two = { json: 1, text: "1" } as unknown as OutgoingMessage;
  for (const message of [none, two]) assert.throws(() => buildMessage(message), TypeError);
});

test("what a field cannot hold is BadRequest, and is not quoted", () => {
  const cyclic: Record<string, unknown> = { secret: "canary" };
  cyclic["self"] = cyclic;
  const bad: OutgoingMessage[] = [
    { json: cyclic },
    { json: 10n },
    { json: () => 1 },
    { text: "\ud800" },
    { json: 1, eventType: "\udfff" },
    { json: 1, headers: { a: "\ud800" } },
    { json: 1, ttlS: Number.NaN },
    { json: 1, ttlS: Infinity },
    { json: 1, stream: { streamId: "s", index: -1 } },
    { json: 1, stream: { streamId: "s", index: 2 ** 53 } },
  ];
  for (const message of bad) {
    assert.throws(
      () => buildMessage(message),
      (error: BadRequest) => error instanceof BadRequest && error.violations.length === 1 && !inspect(error).includes("canary"),
    );
  }
});

test("every field comes through the encoding", () => {
  const message = buildMessage({
    json: 1,
    messageId: "m-1",
    eventType: "e",
    ttlS: 1.25,
    headers: { a: "b" },
    minDurability: "DISK",
    critical: true,
    replyTo: "r",
    stream: { streamId: "s", index: 2 ** 40, state: "end" },
  });
  assert.deepEqual(Message.decode(encodeMessage(message)), message);
  assert.deepEqual(message.ttl, { seconds: 1, nanos: 250_000_000 });
});

test("one writer serves them all, whatever became of the one before", () => {
  const large = buildMessage({ binary: new Uint8Array(200_000) });
  const small = buildMessage({ json: 1 });
  assert.throws(() => encodeMessage({ ...small, minDurability: 2 ** 40 }));
  assert.equal(Message.decode(encodeMessage(large)).payload.length, 200_000);
  assert.deepEqual(Message.decode(encodeMessage(small)), small);
});

test("an id is made up: 32 hexadecimal digits, another each time", () => {
  const ids = Array.from({ length: 1_000 }, newMessageId);
  assert.equal(new Set(ids).size, ids.length);
  for (const id of ids) assert.match(id, /^[0-9a-f]{32}$/);
  assert.match(buildMessage({ json: 1, messageId: "" }).messageId, /^[0-9a-f]{32}$/);
});

test("a token that gRPC cannot carry is refused, and not quoted", () => {
  const bad = ["canary\nx-service-token: a", "canary\r", "tökén-canary", " canary", "canary ", "canary\0", "c".repeat(4_097)];
  for (const token of [...bad, undefined as unknown as string]) {
    assert.throws(
      () => checkToken(token),
      (error: TokenInvalid) => {
        assert.ok(error instanceof TokenInvalid);
        assert.equal(error.reason, "TOKEN_INVALID");
        return !inspect(error).includes("canary");
      },
    );
  }
  assert.equal(checkToken("a".repeat(4_096)).length, 4_096);
  assert.equal(checkToken(""), "");
});

test("a token is not printed", () => {
  const token = new ContextToken("canary", 5);
  assert.equal(token.text, "canary");
  assert.doesNotMatch(inspect(token, { showHidden: true }) + JSON.stringify(token), /canary/);
});

test("a duration is whole seconds and the rest", () => {
  assert.deepEqual(duration(0.9999999999, "x"), { seconds: 1, nanos: 0 });
  assert.deepEqual(duration(-1.5, "x"), { seconds: -1, nanos: -500_000_000 });
  assert.throws(() => duration(1e300, "x"), BadRequest);
});
