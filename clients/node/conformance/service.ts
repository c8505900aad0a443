/** A service's commands: each is one call of the client. */

import { readFile } from "node:fs/promises";
import { SidecarClient, SidecarError } from "../src/index.js";
import type { BroadcastScope, Receipt, Sender } from "../src/index.js";
import { RunningAgent } from "./agents.js";
import { load } from "./load.js";
import type { LoadValues } from "./load.js";
import { messageFrom, receipt, result, targetFrom, user } from "./values.js";
import type { MessageValues, TargetValues, Values } from "./values.js";

const READY_S = 20;

/** A command's members, as the protocol says them: the driver is not checked. */
interface Said extends TargetValues, LoadValues {
  readonly client: string;
  readonly sender: string;
  readonly agent: string;
  readonly handle: number;
  readonly endpoint: string;
  readonly service_token?: string;
  readonly ca_file?: string;
  readonly timeout_s?: number;
  readonly ready_s?: number;
  readonly message: MessageValues;
  readonly messages: readonly MessageValues[];
  readonly items: readonly (TargetValues & { readonly message: MessageValues })[];
  readonly event_type: string;
  readonly data: unknown;
  readonly message_id?: string;
  readonly wait_for_ack_s?: number;
  readonly scope: BroadcastScope;
  readonly code?: number;
  readonly reason?: string;
  readonly user_token: string;
  readonly connection_id: string;
  readonly scopes: readonly string[];
  readonly report_acknowledged?: boolean;
  readonly service_name: string;
  readonly events?: readonly string[];
  readonly credits?: number;
  readonly stream_id?: string;
}

type Command = (said: Said) => Promise<Values>;

/** Things by their names. */
class Named<T> {
  readonly #things = new Map<string, T>();

  put(name: string, thing: T): void {
    this.#things.set(name, thing);
  }

  get(name: string): T {
    const thing = this.#things.get(name);
    if (thing === undefined) throw new Error(`there is no ${name}`);
    return thing;
  }

  take(name: string): T {
    const thing = this.get(name);
    this.#things.delete(name);
    return thing;
  }
}

const clients = new Named<SidecarClient>();
const senders = new Named<Sender>();
const agents = new Named<RunningAgent>();

function options(said: Said): { waitForAckS?: number | undefined; timeoutS?: number | undefined } {
  return { waitForAckS: said.wait_for_ack_s, timeoutS: said.timeout_s };
}

async function outcome(call: Promise<Receipt>): Promise<Values> {
  try {
    return result(await call);
  } catch (error) {
    if (error instanceof SidecarError) return result(error);
    throw error;
  }
}

const calls: Record<string, Command> = {
  open: async (said) => {
    const tls = said.ca_file === undefined ? undefined : { ca: await readFile(said.ca_file) };
    const { endpoint, service_token: serviceToken = "", timeout_s: timeoutS, ready_s: readyS = READY_S } = said;
    const client = new SidecarClient({ endpoint, serviceToken, tls, timeoutS });
    clients.put(said.client, client);
    if (readyS > 0) await client.waitUntilReady({ timeoutS: readyS });
    return {};
  },
  close: async (said) => {
    await clients.take(said.client).close();
    return {};
  },
  send_to_user: async (said) =>
    receipt(await clients.get(said.client).sendToUser(targetFrom(said), messageFrom(said.message), options(said))),
  emit_critical_event: async (said) => {
    const event = { eventType: said.event_type, data: said.data, messageId: said.message_id };
    return receipt(await clients.get(said.client).emitCriticalEvent(targetFrom(said), event, options(said)));
  },
  send_batch: async (said) => {
    const items = said.items.map((item) => ({ ...targetFrom(item), message: messageFrom(item.message) }));
    return { results: (await clients.get(said.client).sendBatch(items)).map(result) };
  },
  broadcast: async (said) => {
    const { client, context_token: token, scope, message } = said;
    return { ...(await clients.get(client).broadcast(token, scope, messageFrom(message))) };
  },
  close_manager: async (said) => {
    const { code, reason } = said;
    return { connections: await clients.get(said.client).closeManager(targetFrom(said), { code, reason }) };
  },
  get_manager_stats: async (said) => {
    const stats = await clients.get(said.client).getManagerStats(targetFrom(said));
    return {
      connections_managed: stats.connectionsManaged,
      messages_sent_total: stats.messagesSentTotal,
      messages_failed_total: stats.messagesFailedTotal,
      last_activity_time: stats.lastActivityTime,
      manager_age_seconds: stats.managerAgeSeconds,
      cleanup_scheduled: stats.cleanupScheduled,
      outbox_messages: stats.outboxMessages,
      outbox_bytes: stats.outboxBytes,
    };
  },
};

const tokens: Record<string, Command> = {
  get_context: async (said) => {
    const facts = await clients.get(said.client).getContext(said.context_token);
    return {
      isolation_key: facts.isolationKey,
      context: user(facts.context),
      scopes: facts.scopes,
      expire_time: facts.expireTime,
    };
  },
  refresh_context_token: async (said) => {
    const token = await clients.get(said.client).refreshContextToken(said.context_token);
    return { context_token: token.text, expire_time: token.expireTime };
  },
  revoke_context_token: async (said) => {
    await clients.get(said.client).revokeContextToken(said.context_token);
    return {};
  },
  exchange_context_token: async (said) => {
    const { client, user_token: token, connection_id: connection, scopes } = said;
    const grant = await clients.get(client).exchangeContextToken(token, connection, scopes);
    return {
      isolation_key: grant.isolationKey,
      context_token: grant.token.text,
      expire_time: grant.token.expireTime,
      context: user(grant.context),
    };
  },
};

const sending: Record<string, Command> = {
  sender_open: (said) => {
    const reportAcknowledged = said.report_acknowledged;
    senders.put(said.sender, clients.get(said.client).sender({ reportAcknowledged }));
    return Promise.resolve({});
  },
  sender_send: async (said) =>
    receipt(await senders.get(said.sender).send(targetFrom(said), messageFrom(said.message), options(said))),
  sender_send_many: async (said) => {
    const [sender, target] = [senders.get(said.sender), targetFrom(said)];
    return { results: await Promise.all(said.messages.map((message) => outcome(sender.send(target, messageFrom(message))))) };
  },
  sender_close: async (said) => {
    await senders.take(said.sender).close();
    return {};
  },
  load: (said) => load(clients.get(said.client), said),
};

const answering: Record<string, Command> = {
  agent_open: async (said) => {
    const { client, service_name: name, events = ["*"], credits } = said;
    const agent = new RunningAgent(clients.get(client), name, events, credits);
    try {
      await agent.open();
    } catch (error) {
      await agent.close();
      throw error;
    }
    agents.put(said.agent, agent);
    return {};
  },
  agent_next: (said) => agents.get(said.agent).events.next(),
  context_send: (said) => agents.get(said.agent).send(said.handle, said.message),
  reply_send: (said) => agents.get(said.agent).handling(said.handle).tell("reply_send", said),
  reply_end: (said) => agents.get(said.agent).handling(said.handle).tell("reply_end", {}),
  reply_fail: (said) => agents.get(said.agent).handling(said.handle).tell("reply_fail", {}),
  reply_cancelled: async (said) => {
    await agents.get(said.agent).handling(said.handle).cancelled();
    return {};
  },
  agent_close: async (said) => {
    await agents.get(said.agent).close(); // what it has begun is still answered meanwhile
    agents.take(said.agent);
    return {};
  },
};

/** Every command by its name. */
export const COMMANDS: ReadonlyMap<string, Command> = new Map(
  Object.entries({ ...calls, ...tokens, ...sending, ...answering }),
);
