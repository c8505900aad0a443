import assert from "node:assert/strict";
import { test } from "node:test";
import { AgentMemory, Recent } from "../src/agent-memory.js";

const QUESTION = { isolationKey: "a", messageId: "q-1" };

test("only the latest names are remembered", () => {
  const recent = new Recent(3);
  for (const name of ["a", "b", "c", "d"]) recent.add(name);
  assert.deepEqual([recent.has("a"), recent.has("b"), recent.has("d"), recent.size], [false, true, true, 3]);
});

test("a delivery is new once", () => {
  const memory = new AgentMemory();
  assert.equal(memory.isNew("d-1", QUESTION, false), true);
  assert.equal(memory.isNew("d-1", QUESTION, true), false);
  assert.equal(memory.isNew("d-2", QUESTION, true), false);
  assert.equal(memory.isNew("d-3", QUESTION, false), true);
  assert.equal(memory.isNew("d-4", { ...QUESTION, isolationKey: "b" }, true), true);
});

test("what is forgotten is new, by its delivery and by its own id", () => {
  const memory = new AgentMemory();
  for (const id of ["d-1", "d-2"]) {
    assert.equal(memory.isNew(id, QUESTION, true), true);
    memory.forget(id, QUESTION);
  }
  assert.equal(memory.isNew("d-1", undefined, true), true);
  assert.equal(memory.isNew("d-1", undefined, true), false);
  memory.forget("d-1", undefined);
  assert.equal(memory.isNew("d-1", QUESTION, true), true);
});

test("a client's message without an id is known by its delivery alone", () => {
  const memory = new AgentMemory();
  const nameless = { isolationKey: "a", messageId: "" };
  memory.cancel(nameless);
  assert.equal(memory.isCancelled(nameless), false);
  assert.equal(memory.isNew("d-1", nameless, true), true);
  assert.equal(memory.isNew("d-2", nameless, true), true);
});

test("what was cancelled before it came is known", () => {
  const memory = new AgentMemory();
  memory.cancel(QUESTION);
  assert.equal(memory.isCancelled(QUESTION), true);
  assert.equal(memory.isCancelled({ ...QUESTION, isolationKey: "b" }), false);
});
