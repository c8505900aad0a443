/** Whether a further stream may go better, so that nobody needs to be told of this one's end. */

import { TransportError, Unavailable } from "./errors.js";
import type { Code, SidecarError } from "./errors.js";

/** Of a stream that broke without a reason. */
const PASSING: ReadonlySet<Code> = new Set<Code>(["UNAVAILABLE", "CANCELLED", "UNKNOWN", "INTERNAL"]);

export function isPassing(error: SidecarError): boolean {
  if (error instanceof TransportError) return PASSING.has(error.code);
  return error.retryAfterS !== undefined || error instanceof Unavailable;
}
