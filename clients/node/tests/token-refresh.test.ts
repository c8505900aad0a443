import assert from "node:assert/strict";
import { test } from "node:test";
import { AgentContext } from "../src/agent-context.js";
import type { AgentPorts } from "../src/agent-context.js";
import { ContextToken, ManagerGone, TokenExpired, TransportError, Unavailable } from "../src/index.js";
import type { UserContext } from "../src/index.js";
import { TokenRefresh } from "../src/token-refresh.js";

/** A token that says how long it lives. */
function token(name: string, lifeS = 100): string {
  const claims = Buffer.from(JSON.stringify({ iat: 1_000, exp: 1_000 + lifeS, name })).toString("base64url");
  return `h.${claims}.s`;
}

class World {
  time = 0;
  readonly asked: string[] = [];
  answer: () => Promise<ContextToken> = () => Promise.resolve(new ContextToken(token(`new-${this.asked.length}`), 0));
  readonly warnings: string[] = [];
  readonly refresh = new TokenRefresh({
    refresh: (old) => {
      this.asked.push(old);
      return this.answer();
    },
    now: () => this.time,
    logger: { debug: () => undefined, warn: (text) => this.warnings.push(text), error: () => undefined },
  });

  context(text: string): AgentContext {
    const ports = { now: () => this.time } as unknown as AgentPorts;
    const context = new AgentContext("k", { userId: "alice" } as UserContext, ports);
    context.renew(text);
    this.refresh.keep(context);
    return context;
  }

  async at(time: number): Promise<number> {
    this.time = time;
    await this.refresh.look();
    return this.asked.length;
  }
}

test("a token is refreshed before half of its life is over, again and again", async () => {
  const world = new World();
  const context = world.context(token("first"));
  assert.equal(await world.at(39), 0);
  assert.equal(await world.at(40), 1);
  assert.deepEqual([world.asked, context.contextToken], [[token("first")], token("new-1")]);
  assert.equal(await world.at(79), 1);
  assert.equal(await world.at(80), 2);
  world.refresh.stop();
});

test("one that a newer event has brought is not asked for", async () => {
  const world = new World();
  const context = world.context(token("first"));
  world.time = 30;
  context.renew(token("by an event"));
  assert.equal(await world.at(40), 0);
  assert.equal(await world.at(70), 1);
  world.refresh.stop();
});

test("what fails for now is tried again, what is over is not", async () => {
  const world = new World();
  const context = world.context(token("first"));
  world.answer = () => Promise.reject(new Unavailable("UNAVAILABLE", "DRAINING", ""));
  assert.equal(await world.at(40), 1);
  assert.equal(await world.at(45), 2);
  assert.deepEqual(world.warnings[0], "a context token could not be refreshed: DRAINING");
  world.answer = () => Promise.reject(new TransportError("UNAVAILABLE", "", ""));
  assert.equal(await world.at(50), 3);
  world.answer = () => Promise.reject(new ManagerGone("NOT_FOUND", "MANAGER_GONE", ""));
  assert.equal(await world.at(55), 4);
  assert.deepEqual([context.ended, world.refresh.size], [true, 0]);
  const expired = world.context(token("second"));
  world.answer = () => Promise.reject(new TokenExpired("UNAUTHENTICATED", "TOKEN_EXPIRED", ""));
  await world.at(200);
  assert.deepEqual([expired.ended, world.refresh.size], [false, 0]);
  world.refresh.stop();
});

test("a token that was refused is asked for no more, until an event brings another", async () => {
  const world = new World();
  const context = world.context(token("first"));
  const comes = (text: string): void => {
    context.renew(text);
    world.refresh.keep(context);
  };
  world.answer = () => Promise.reject(new TokenExpired("UNAUTHENTICATED", "TOKEN_EXPIRED", ""));
  assert.equal(await world.at(40), 1);
  comes(token("first"));
  assert.deepEqual([await world.at(100), world.refresh.size], [1, 0]);
  comes(token("second"));
  comes(token("second"));
  assert.deepEqual([await world.at(139), world.refresh.size], [1, 1]);
  world.answer = () => {
    comes(token("third")); // while the one before is asked for
    return Promise.reject(new TokenExpired("UNAUTHENTICATED", "TOKEN_EXPIRED", ""));
  };
  assert.deepEqual([await world.at(140), world.refresh.size], [2, 1]);
  assert.equal(await world.at(179), 2);
  assert.equal(await world.at(180), 3);
  assert.deepEqual(world.asked, [token("first"), token("second"), token("third")]);
  assert.equal(context.ended, false);
  world.refresh.stop();
});

test("a context that has ended, and a token that does not say when it ends, are left alone", async () => {
  const world = new World();
  world.context(token("first")).end();
  world.context("no.token");
  world.context("h." + Buffer.from('{"exp":1}').toString("base64url") + ".s");
  assert.equal(await world.at(1_000), 0);
  assert.equal(world.refresh.size, 0);
  world.refresh.stop();
});

test("when it is stopped nothing is asked for any more", async () => {
  const world = new World();
  world.context(token("first"));
  world.refresh.stop();
  assert.equal(await world.at(1_000), 0);
});
