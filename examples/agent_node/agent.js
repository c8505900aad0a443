// @ts-check
/** The demo agent: attached to the sidecar, it answers word by word, stops when told to, and tries what must fail. */

import { setTimeout as pause } from "node:timers/promises";
import { Agent, SidecarError } from "@ws-sidecar/client";
import { answer } from "./answers.js";

const PAUSE_MS = 40;
const MAX_QUESTION_CHARACTERS = 2_000;

/**
 * The agent and its two handlers.
 *
 * @param {import("@ws-sidecar/client").SidecarClient} client Its connection to the sidecar, closed by whoever made it.
 */
export function makeAgent(client) {
  const agent = new Agent("demo", { client });

  // Answers a question word by word, until it is all said or the user has heard enough.
  agent.onMessage("ask", async (context, message, signal) => {
    let said = 0;
    try {
      const stream = message.reply({ eventType: "agent.word" });
      for (const word of answer(context.user.userId, textOf(message.data, "question"))) {
        await stream.send({ text: word });
        said += 1;
        await pause(PAUSE_MS, undefined, { signal }); // a model would be thinking
      }
    } catch (error) {
      if (!signal.aborted) throw error;
      console.error(`demo agent: stopped after ${said} words`);
      if (message.cancelled && !context.ended) {
        await context.send({ json: { words: said }, eventType: "agent.stopped", replyTo: message.id });
      }
      throw signal.reason;
    }
  });

  // Sends into a context that the user chose, with the user's own token; says what the sidecar answered.
  agent.onMessage("attack", async (context, message) => {
    const target = {
      isolationKey: textOf(message.data, "victim_isolation_key"),
      contextToken: context.contextToken,
      expectedUserId: context.user.userId,
    };
    let verdict = { code: "OK", reason: "" };
    try {
      await client.sendToUser(target, { json: { from: context.user.userId }, eventType: "agent.attack" });
    } catch (refusal) {
      if (!(refusal instanceof SidecarError)) throw refusal;
      verdict = { code: refusal.code, reason: refusal.reason };
    }
    await context.send({ json: verdict, eventType: "agent.verdict", replyTo: message.id });
  });

  return agent;
}

/**
 * That member of what a page sent, as far as it is text: what a user says is never trusted to be anything.
 *
 * @param {unknown} data
 * @param {string} name
 */
function textOf(data, name) {
  const value = typeof data === "object" && data !== null ? Object.entries(data).find(([key]) => key === name)?.[1] : "";
  return typeof value === "string" ? value.slice(0, MAX_QUESTION_CHARACTERS) : "";
}
