/**
 * The caller's trace, told to the sidecar (W3C Trace Context) where the program has OpenTelemetry. Its API is an optional
 * peer dependency, looked for at the first call; without it, or without a propagator, nothing is told.
 */

import { createRequire } from "node:module";
import type { Metadata } from "@grpc/grpc-js";

type Api = typeof import("@opentelemetry/api");

/** No baggage: what a program tells its own parts is not for the sidecar. */
const TOLD: readonly string[] = ["traceparent", "tracestate"];

let api: Api | null | undefined;

/** Add `traceparent` (and `tracestate`) of the active context to a call's metadata. */
export function injectTrace(metadata: Metadata): void {
  api ??= load();
  if (api === null) return;
  const carrier: Record<string, string> = {};
  api.propagation.inject(api.context.active(), carrier);
  for (const name of TOLD) {
    const value = carrier[name];
    if (value !== undefined) metadata.set(name, value);
  }
}

/** The CommonJS build: every build of the API shares one global, and only `require` answers at once. */
function load(): Api | null {
  try {
    return createRequire(import.meta.url)("@opentelemetry/api") as Api;
  } catch {
    return null;
  }
}
