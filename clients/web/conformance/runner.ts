/**
 * The user's commands of clients/conformance/README.md: one command a line, one call of the client. Knows neither Node nor
 * the page: `handle` is given a line and gives one.
 */

import { ConnectionEnded, SidecarError, connect } from "../src/index.js";
import type { Connection, Event, Message, WebSocketConstructor } from "../src/index.js";

type Members = Record<string, unknown>;

interface Command {
  readonly id: number;
  readonly do: string;
  readonly with: Members;
}

interface User {
  readonly connection: Connection;
  /** Of the one iterator: commands that wait for an event are served in their order. */
  readonly events: AsyncIterator<Event>;
}

class UnknownCommand extends Error {}

/** What carries out the commands, with the users that it has connected. */
export function makeRunner(WebSocket?: WebSocketConstructor): (line: string) => Promise<string> {
  const users = new Map<string, User>();
  return async (line) => {
    const command = JSON.parse(line) as Command;
    try {
      const ok = await carryOut(command.do, command.with, users, WebSocket);
      return JSON.stringify({ id: command.id, ok });
    } catch (error) {
      return JSON.stringify({ id: command.id, error: described(error) });
    }
  };
}

async function carryOut(
  name: string,
  members: Members,
  users: Map<string, User>,
  WebSocket: WebSocketConstructor | undefined,
): Promise<unknown> {
  if (name === "connect") {
    const user = opened(members, WebSocket);
    await user.connection.opened;
    users.set(members["user"] as string, user);
    return facts(user.connection);
  }
  const user = users.get(members["user"] as string);
  const act = COMMANDS[name];
  if (!act) throw new UnknownCommand();
  if (!user) throw new Error("no user of that name");
  return act(user, members);
}

function opened(members: Members, WebSocket: WebSocketConstructor | undefined): User {
  const tokens = members["tokens"] as string[];
  let asked = 0;
  const resume = members["resume"] as { token: string; last_sequence: number; attempt: number } | undefined;
  const connection = connect(members["url"] as string, {
    token: () => tokens[Math.min(asked++, tokens.length - 1)] ?? "",
    resume: resume && { token: resume.token, lastSequence: resume.last_sequence, attempt: resume.attempt },
    acknowledge: members["acknowledge"] === true,
    ...(WebSocket && { WebSocket }),
  });
  return { connection, events: connection[Symbol.asyncIterator]() };
}

const COMMANDS: Record<string, (user: User, members: Members) => unknown> = {
  facts: ({ connection }) => facts(connection),
  next: async ({ events }) => {
    try {
      const next = await events.next();
      return next.done === true ? { kind: "ended", code: 1000 } : shown(next.value);
    } catch (error) {
      if (error instanceof ConnectionEnded) return { kind: "ended", code: error.code };
      throw error;
    }
  },
  acknowledge: ({ connection }) => {
    connection.acknowledge();
    return {};
  },
  send: async ({ connection }, { data, event, id }) => {
    await connection.send(data, {
      ...(event !== undefined && { event: event as string }),
      ...(id !== undefined && { id: id as string }),
    });
    return {};
  },
  cancel: ({ connection }, { stream_id: streamId, id }) => {
    connection.cancel({
      ...(streamId !== undefined && { streamId: streamId as string }),
      ...(id !== undefined && { id: id as string }),
    });
    return {};
  },
  detach: ({ connection }) => {
    const state = connection.detach();
    return state && { token: state.token, last_sequence: state.lastSequence, attempt: state.attempt };
  },
  leave: ({ connection }) => {
    connection.close();
    return {};
  },
};

function facts(connection: Connection): Members {
  return {
    connection_id: connection.connectionId,
    isolation_key: connection.isolationKey,
    context_token: connection.contextToken,
    recovery: connection.recovery,
  };
}

function shown(event: Event): Members {
  switch (event.kind) {
    case "message":
      return message(event);
    case "gap":
      return { kind: "gap", first: event.first, last: event.last, reason: event.reason };
    case "replaced":
      return { kind: "replaced", connection_id: event.connectionId, isolation_key: event.isolationKey };
  }
}

function message(event: Message): Members {
  return {
    kind: "message",
    sequence: event.sequence,
    id: event.id,
    event: event.event,
    content_type: event.contentType,
    data: event.data instanceof Uint8Array ? base64(event.data) : event.data,
    critical: event.critical,
    reply_to: event.replyTo,
    ...(event.stream && { stream: { id: event.stream.id, index: event.stream.index, state: event.stream.state } }),
    headers: event.headers,
  };
}

function base64(bytes: Uint8Array): string {
  let characters = "";
  for (const byte of bytes) characters += String.fromCharCode(byte);
  return btoa(characters);
}

/** Never a token: these texts are the client's own, or the catalogue's. */
function described(error: unknown): Members {
  if (error instanceof UnknownCommand) return { reason: "UNKNOWN_COMMAND" };
  if (error instanceof ConnectionEnded) return { close_code: error.code, reason: error.reason, definite: error.definite };
  if (error instanceof SidecarError) return { reason: error.reason, definite: error.definite };
  return { reason: "CRASH", message: String(error) };
}
