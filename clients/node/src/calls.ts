/** Every unary call: the method, the request, the token and how to read the answer. Opens nothing. */

import type { MethodDefinition } from "@grpc/grpc-js";
import { receiptFrom, resultFrom, statsFrom, unix, userContextFrom } from "./answers.js";
import type { TokenHeader } from "./connection.js";
import { badRequest } from "./error-catalogue.js";
import { SidecarError } from "./errors.js";
import { ContextServiceService as Context } from "./generated/sidecar/api/v1/context_service.js";
import * as pb from "./generated/sidecar/api/v1/delivery_service.js";
import { buildMessage, bytesOf, checkToken, duration, encodeJson, newMessageId, text } from "./messages.js";
import type { OutgoingMessage } from "./messages.js";
import { ContextToken } from "./values.js";
import type {
  BroadcastResult,
  BroadcastScope,
  ContextFacts,
  ContextGrant,
  ManagerStats,
  Receipt,
  Target,
} from "./values.js";

const { DeliveryServiceService: Delivery } = pb;
const MAX_UINT32 = 2 ** 32 - 1;

/** One message of a batch, and where it goes. */
export interface BatchItem extends Target {
  readonly message: OutgoingMessage;
}

/** A critical event: `data` is any JSON value, or JSON that is encoded already. */
export interface CriticalEvent {
  /** An identifier: what kind of event this is. */
  readonly eventType: string;
  readonly data: unknown;
  /** Default: made up. */
  readonly messageId?: string | undefined;
}

/** One call to be made. */
export interface UnaryCall<Result, Request, Response> {
  readonly method: MethodDefinition<Request, Response>;
  readonly request: Request;
  readonly token: TokenHeader;
  readonly read: (response: Response) => Result;
  /** The sidecar takes it once, however often it is sent. */
  readonly repeatable: boolean;
  /** How long the sidecar may hold the answer; the deadline is later by as much. */
  readonly heldS: number;
}

/** A call, with what most of them have. */
function call<Result, Request, Response>(
  method: MethodDefinition<Request, Response>,
  request: Request,
  token: TokenHeader,
  read: (response: Response) => Result,
  { repeatable = true, heldS = 0 }: { repeatable?: boolean; heldS?: number } = {},
): UnaryCall<Result, Request, Response> {
  return { method, request, token, read, repeatable, heldS };
}

export function sendToUser(target: Target, message: OutgoingMessage, waitForAckS: number | undefined) {
  const request: pb.SendToUserRequest = {
    isolationKey: text(target.isolationKey, "isolation_key"),
    message: buildMessage(message),
    waitForAck: hold(waitForAckS),
    expectedUserId: text(target.expectedUserId, "expected_user_id"),
  };
  const read = (response: pb.SendToUserResponse): Receipt => receiptFrom(response.receipt);
  return call(Delivery.sendToUser, request, forContext(target.contextToken), read, { heldS: waitForAckS ?? 0 });
}

export function emitCriticalEvent(target: Target, event: CriticalEvent, waitForAckS: number | undefined) {
  const { data } = event;
  const request: pb.EmitCriticalEventRequest = {
    isolationKey: text(target.isolationKey, "isolation_key"),
    eventType: text(event.eventType, "event_type"),
    data: data instanceof Uint8Array ? bytesOf(data) : encodeJson(data, "data"),
    messageId: text(event.messageId, "message_id") || newMessageId(),
    waitForAck: hold(waitForAckS),
    expectedUserId: text(target.expectedUserId, "expected_user_id"),
  };
  const read = (response: pb.EmitCriticalEventResponse): Receipt => receiptFrom(response.receipt);
  return call(Delivery.emitCriticalEvent, request, forContext(target.contextToken), read, { heldS: waitForAckS ?? 0 });
}

/** An item that cannot be sent at all is answered in its place, and costs the others nothing. */
export function sendBatch(items: readonly BatchItem[]) {
  const built = items.map(buildItem);
  const request: pb.SendBatchRequest = { items: built.filter((item): item is pb.SendBatchItem => !(item instanceof SidecarError)) };
  const read = (response: pb.SendBatchResponse): (Receipt | SidecarError)[] => {
    const answers = response.results.values();
    return built.map((item) => (item instanceof SidecarError ? item : resultFrom(answers.next().value)));
  };
  return call(Delivery.sendBatch, request, undefined, read);
}

export function broadcast(contextToken: string, scope: BroadcastScope, message: OutgoingMessage) {
  const request: pb.BroadcastRequest = {
    scope: scope === "user" ? pb.BroadcastScope.BROADCAST_SCOPE_USER : pb.BroadcastScope.BROADCAST_SCOPE_TENANT,
    message: buildMessage(message),
  };
  return call(Delivery.broadcast, request, forContext(contextToken), (response): BroadcastResult => response);
}

/** How many sockets the context had. Not repeated: a second answer would be MANAGER_GONE. */
export function closeManager(target: Target, code: number, reason: string) {
  if (!Number.isInteger(code) || code < 0 || code > MAX_UINT32) throw badRequest("code", "4505, or 4900 to 4999");
  const request = { isolationKey: text(target.isolationKey, "isolation_key"), code, reason: text(reason, "reason") };
  const read = (response: pb.CloseManagerResponse): number => response.connections;
  return call(Delivery.closeManager, request, forContext(target.contextToken), read, { repeatable: false });
}

export function getManagerStats(target: Target) {
  const request = { isolationKey: text(target.isolationKey, "isolation_key") };
  return call(Delivery.getManagerStats, request, forContext(target.contextToken), (response): ManagerStats => statsFrom(response));
}

export function getContext(contextToken: string) {
  return call(
    Context.getContext,
    {},
    forContext(contextToken),
    (response): ContextFacts => ({
      isolationKey: response.isolationKey,
      context: userContextFrom(response.context),
      scopes: response.scopes,
      expireTime: unix(response.expireTime),
    }),
  );
}

/** Not repeated: each call mints another token. */
export function refreshContextToken(contextToken: string) {
  return call(
    Context.refreshContextToken,
    {},
    forContext(contextToken),
    (response) => new ContextToken(response.contextToken, unix(response.expireTime)),
    { repeatable: false },
  );
}

/** Not repeated: a second answer would be TOKEN_REVOKED. */
export function revokeContextToken(contextToken: string) {
  return call(Context.revokeContextToken, {}, forContext(contextToken), () => undefined, { repeatable: false });
}

/** Not repeated: each call mints another token. */
export function exchangeContextToken(
  userToken: string,
  connectionId: string,
  scopes: readonly string[],
  serviceToken: string,
) {
  const request = {
    userToken: text(userToken, "user_token"),
    connectionId: text(connectionId, "connection_id"),
    scopes: scopes.map((scope) => text(scope, "scopes")),
  };
  return call(
    Context.exchangeContextToken,
    request,
    asService(serviceToken),
    (response): ContextGrant => ({
      isolationKey: response.isolationKey,
      token: new ContextToken(response.contextToken, unix(response.expireTime)),
      context: userContextFrom(response.context),
    }),
    { repeatable: false },
  );
}

/** What says which service calls; nothing where mTLS does. */
export function asService(serviceToken: string): TokenHeader {
  return serviceToken === "" ? undefined : ["x-service-token", checkToken(serviceToken)];
}

function forContext(contextToken: string): TokenHeader {
  return ["x-context-token", checkToken(contextToken)];
}

function hold(waitForAckS: number | undefined): pb.SendToUserRequest["waitForAck"] {
  return waitForAckS === undefined ? undefined : duration(waitForAckS, "wait_for_ack");
}

function buildItem(item: BatchItem): pb.SendBatchItem | SidecarError {
  try {
    return {
      isolationKey: text(item.isolationKey, "isolation_key"),
      contextToken: checkToken(item.contextToken),
      message: buildMessage(item.message),
      expectedUserId: text(item.expectedUserId, "expected_user_id"),
    };
  } catch (error) {
    if (error instanceof SidecarError) return error;
    throw error;
  }
}
