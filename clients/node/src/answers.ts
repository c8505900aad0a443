/** The contract's answers as plain values. A number that came after this version is read as the least. */

import { errorFromStatus } from "./error-catalogue.js";
import type { SidecarError } from "./errors.js";
import type { Timestamp } from "./generated/google/protobuf/timestamp.js";
import type { GetManagerStatsResponse, SendBatchResult } from "./generated/sidecar/api/v1/delivery_service.js";
import type * as pb from "./generated/sidecar/api/v1/types.js";
import type { ContentType, DeliveryState, Durability, ManagerStats, Receipt, UserContext } from "./values.js";

const STATES: readonly (DeliveryState | undefined)[] = [undefined, "QUEUED", "WRITTEN", "ACKNOWLEDGED", "DROPPED"];
const DURABILITIES: readonly (Durability | undefined)[] = [undefined, "MEMORY", "DISK", "REPLICATED"];
const CONTENT_TYPES: readonly (ContentType | undefined)[] = ["json", "json", "text", "binary"];

export function receiptFrom(receipt: pb.Receipt | undefined): Receipt {
  return {
    messageId: receipt?.messageId ?? "",
    sequence: receipt?.sequence ?? 0,
    state: STATES[receipt?.state ?? 0] ?? "QUEUED",
    durability: DURABILITIES[receipt?.durability ?? 0] ?? "MEMORY",
    connections: receipt?.connections ?? 0,
    duplicate: receipt?.duplicate ?? false,
    acceptedTime: unix(receipt?.acceptedTime),
  };
}

export function resultFrom(result: SendBatchResult | undefined): Receipt | SidecarError {
  if (result?.result?.$case === "error") return errorFromStatus(result.result.value);
  return receiptFrom(result?.result?.value);
}

export function userContextFrom(context: pb.UserContext | undefined): UserContext {
  return {
    tenantId: context?.tenantId ?? "",
    userId: context?.userId ?? "",
    sessionId: context?.sessionId ?? "",
    connectionId: context?.connectionId ?? "",
    requestId: context?.requestId ?? "",
    createdTime: unix(context?.createdTime),
    permissions: context?.permissions ?? [],
    metadata: context?.metadata ?? {},
  };
}

export function statsFrom(response: GetManagerStatsResponse): ManagerStats {
  return { ...response, lastActivityTime: unix(response.lastActivityTime) };
}

export function contentTypeFrom(type: pb.ContentType): ContentType {
  return CONTENT_TYPES[type] ?? "binary";
}

/** Unix seconds. */
export function unix(time: Timestamp | undefined): number {
  return time === undefined ? 0 : time.seconds + time.nanos / 1e9;
}
