// @ts-check
/** An HTTP service in Express: a page asks with its context token, the answer comes over its WebSocket. */

import { randomBytes } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import express from "express";
import {
  IsolationViolation,
  ManagerGone,
  OutboxFull,
  SidecarError,
  StreamCancelled,
  TokenError,
} from "@ws-sidecar/client";

const PAUSE_MS = 40;
const MAX_QUESTION_CHARACTERS = 2_000;

/**
 * The service's routes.
 *
 * @param {import("@ws-sidecar/client").SidecarClient} sidecar One a process, closed by whoever made it.
 */
export function makeService(sidecar) {
  const sender = sidecar.sender();
  /** @type {Map<string, string>} */
  const sessions = new Map();
  const app = express();
  app.disable("x-powered-by");
  app.use(express.json({ limit: "16kb" }));

  // A session cookie, as the service's pages have one already: stands for the service's own sign-in.
  app.post("/sign-in", (request, response) => {
    const userId = request.body?.user_id;
    if (typeof userId !== "string" || !/^[A-Za-z0-9_.@-]{1,64}$/.test(userId)) {
      response.status(422).json({ reason: "user_id" });
      return;
    }
    const session = randomBytes(32).toString("base64url");
    sessions.set(session, userId);
    response.cookie("session", session, { httpOnly: true, sameSite: "strict" }).status(204).end();
  });

  // Answers to the context that the page's token names, which must be the signed-in user's own.
  app.post("/ask", async (request, response) => {
    // Who asks, by the service's own authentication and by nothing else.
    const expectedUserId = sessions.get(/(?:^|; )session=([^;]*)/.exec(request.get("cookie") ?? "")?.[1] ?? "");
    if (expectedUserId === undefined) {
      response.status(401).json({ reason: "sign in first" });
      return;
    }
    const question = request.body?.question;
    if (typeof question !== "string" || question.length > MAX_QUESTION_CHARACTERS) {
      response.status(422).json({ reason: "question" });
      return;
    }
    const contextToken = request.get("x-context-token") ?? "";
    const { isolationKey } = await sidecar.getContext(contextToken);
    const streamId = randomBytes(16).toString("hex");
    const words = chunks({ isolationKey, contextToken, expectedUserId }, streamId, question);
    await words.next(); // what the sidecar refuses, it refuses here: the page is told
    response.status(202).json({ stream_id: streamId });
    void finish(words);
  });

  app.use(refused);
  return app;

  /**
   * Sends the answer, a word each time it is asked to go on.
   *
   * @param {import("@ws-sidecar/client").Target} target
   * @param {string} streamId
   * @param {string} question
   */
  async function* chunks(target, streamId, question) {
    const words = [...`You asked: ${question}`.trim().split(/\s+/).map((word) => `${word} `), ""];
    for (const [index, word] of words.entries()) {
      const state = index < words.length - 1 ? "open" : "end";
      yield await sender.send(target, { json: word, eventType: "answer", stream: { streamId, index, state } });
    }
  }
}

/**
 * Sends the rest; stops when the user has heard enough, or is gone.
 *
 * @param {AsyncGenerator<unknown>} words
 */
async function finish(words) {
  try {
    for await (const _ of words) await pause(PAUSE_MS); // a model would be thinking
  } catch (error) {
    const over = error instanceof StreamCancelled || error instanceof ManagerGone;
    const why = error instanceof SidecarError ? error.reason || error.code : String(error);
    console.error(`http_node: ${over ? "nobody listens any more" : "an answer could not be sent"}: ${why}`);
  }
}

/**
 * The sidecar's refusal as HTTP says it (RFC 9110 §15.5, §15.6); never its text.
 *
 * @param {unknown} error
 * @param {express.Request} _request
 * @param {express.Response} response
 * @param {express.NextFunction} next
 */
function refused(error, _request, response, next) {
  if (error instanceof SidecarError && !response.headersSent) {
    const seconds = error.retryAfterS;
    if (seconds !== undefined) response.set("Retry-After", String(Math.max(1, Math.round(seconds))));
    response.status(statusOf(error)).json({ reason: error.reason });
  } else {
    next(error);
  }
}

/** @param {SidecarError} error */
function statusOf(error) {
  if (error instanceof TokenError) return 401;
  if (error instanceof IsolationViolation) return 403;
  if (error instanceof ManagerGone) return 410;
  return error instanceof OutboxFull ? 429 : 503;
}
