/** A sidecar that answers as a test says, on a port of its own. */

import { Metadata, Server, ServerCredentials, status as Status } from "@grpc/grpc-js";
import type { sendUnaryData, ServerDuplexStream, ServerUnaryCall, ServiceError } from "@grpc/grpc-js";
import type { Any } from "../../src/generated/google/protobuf/any.js";
import { BadRequest, ErrorInfo, RetryInfo } from "../../src/generated/google/rpc/error_details.js";
import { Status as RpcStatus } from "../../src/generated/google/rpc/status.js";
import { AgentServiceService } from "../../src/generated/sidecar/api/v1/agent_service.js";
import type { AttachRequest, AttachResponse } from "../../src/generated/sidecar/api/v1/agent_service.js";
import { ContextServiceService } from "../../src/generated/sidecar/api/v1/context_service.js";
import { DeliveryServiceService } from "../../src/generated/sidecar/api/v1/delivery_service.js";
import type { DeliverRequest, DeliverResponse } from "../../src/generated/sidecar/api/v1/delivery_service.js";
import type { Receipt } from "../../src/generated/sidecar/api/v1/types.js";

/** A refusal with the sidecar's details. */
export interface Refusal {
  readonly code: Status;
  readonly reason: string;
  readonly retryAfterS?: number;
  readonly incidentId?: string;
  readonly violations?: readonly { field: string; description: string }[];
  readonly message?: string;
}

export type DeliverCall = ServerDuplexStream<DeliverRequest, DeliverResponse>;
export type AttachCall = ServerDuplexStream<AttachRequest, AttachResponse>;
type Answer<Response> = Response | Refusal | "silence";
type Unary<Request, Response> = (request: Request, metadata: Metadata) => Answer<Response>;

/** What it does; what is not said is UNIMPLEMENTED. */
export interface Script {
  readonly sendToUser?: Unary<{ message?: { messageId: string } | undefined }, { receipt: Receipt }>;
  readonly closeManager?: Unary<unknown, { connections: number }>;
  readonly broadcast?: Unary<unknown, { managers: number; connections: number; refused: number }>;
  readonly sendBatch?: Unary<unknown, { results: unknown[] }>;
  readonly refreshContextToken?: Unary<unknown, { contextToken: string; expireTime: { seconds: number; nanos: number } }>;
  readonly exchangeContextToken?: Unary<unknown, unknown>;
  readonly deliver?: (call: DeliverCall) => void;
  readonly attach?: (call: AttachCall) => void;
  readonly watch?: (call: { write(bytes: Buffer): void; end(): void }) => void;
}

const UNARY = ["sendToUser", "closeManager", "broadcast", "sendBatch"] as const;
const TOKENS = ["refreshContextToken", "exchangeContextToken"] as const;
const HEALTH = {
  watch: {
    path: "/grpc.health.v1.Health/Watch",
    requestStream: false,
    responseStream: true,
    requestSerialize: (bytes: Buffer) => bytes,
    requestDeserialize: (bytes: Buffer) => bytes,
    responseSerialize: (bytes: Buffer) => bytes,
    responseDeserialize: (bytes: Buffer) => bytes,
  },
} as const;

/** The running server. */
export class ScriptedSidecar {
  readonly server: Server;
  readonly endpoint: string;

  private constructor(server: Server, endpoint: string) {
    this.server = server;
    this.endpoint = endpoint;
  }

  static async start(
    script: Script,
    address = "127.0.0.1:0",
    credentials = ServerCredentials.createInsecure(),
  ): Promise<ScriptedSidecar> {
    const server = new Server();
    server.addService(DeliveryServiceService, {
      ...Object.fromEntries(UNARY.map((name) => [name, unary(script[name] as Unary<unknown, unknown> | undefined)])),
      ...(script.deliver === undefined ? {} : { deliver: script.deliver }),
    });
    server.addService(ContextServiceService, {
      ...Object.fromEntries(TOKENS.map((name) => [name, unary(script[name] as Unary<unknown, unknown> | undefined)])),
    });
    if (script.attach !== undefined) server.addService(AgentServiceService, { attach: script.attach });
    const watch = script.watch ?? ((call) => { call.write(Buffer.from([0x08, 0x01])); });
    server.addService(HEALTH, { watch });
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync(address, credentials, (failed, bound) => {
        if (failed === null) resolve(bound);
        else reject(failed);
      });
    });
    return new ScriptedSidecar(server, address.startsWith("unix:") ? address : `127.0.0.1:${port}`);
  }

  stop(): void {
    this.server.forceShutdown();
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.stop();
    return Promise.resolve();
  }
}

function unary(script: Unary<unknown, unknown> | undefined) {
  return (call: ServerUnaryCall<unknown, unknown>, callback: sendUnaryData<unknown>): void => {
    const answer = script?.(call.request, call.metadata) ?? { code: Status.UNIMPLEMENTED, reason: "" };
    if (answer === "silence") return;
    if (isRefusal(answer)) callback(refused(answer));
    else callback(null, answer);
  };
}

function isRefusal(answer: unknown): answer is Refusal {
  return typeof answer === "object" && answer !== null && "reason" in answer;
}

/** The refusal as a status of gRPC. */
export function refused(refusal: Refusal): ServiceError {
  const { code, message = "fixed text" } = refusal;
  const metadata = new Metadata();
  if (refusal.reason !== "") metadata.set("grpc-status-details-bin", Buffer.from(RpcStatus.encode(statusOf(refusal)).finish()));
  return Object.assign(new Error(message), { code, details: message, metadata });
}

/** The refusal as a google.rpc.Status. */
export function statusOf(refusal: Refusal): RpcStatus {
  const { incidentId, retryAfterS, violations } = refusal;
  const metadata: Record<string, string> = incidentId === undefined ? {} : { incident_id: incidentId };
  const info = ErrorInfo.encode({ reason: refusal.reason, domain: "sidecar", metadata }).finish();
  const details = [any("google.rpc.ErrorInfo", info)];
  if (retryAfterS !== undefined) {
    const seconds = Math.trunc(retryAfterS);
    const nanos = Math.round((retryAfterS - seconds) * 1e9);
    details.push(any("google.rpc.RetryInfo", RetryInfo.encode({ retryDelay: { seconds, nanos } }).finish()));
  }
  if (violations !== undefined) {
    const fieldViolations = violations.map((each) => ({ ...each, reason: "", localizedMessage: undefined }));
    details.push(any("google.rpc.BadRequest", BadRequest.encode({ fieldViolations }).finish()));
  }
  return { code: refusal.code, message: refusal.message ?? "fixed text", details };
}

function any(type: string, value: Uint8Array): Any {
  return { typeUrl: `type.googleapis.com/${type}`, value: Buffer.from(value) };
}

/** A receipt of the sidecar's. */
export function receipt(messageId: string, sequence = 1, state = 2): Receipt {
  return {
    messageId,
    sequence,
    state,
    durability: 1,
    connections: 1,
    duplicate: false,
    acceptedTime: { seconds: 1_700_000_000, nanos: 500_000_000 },
  };
}
