/** Whether a failed call is sent again, and when. */

import { BackOff } from "./back-off.js";
import type { Uniform } from "./back-off.js";
import { NoAgent, TransportError, Unavailable } from "./errors.js";
import type { SidecarError } from "./errors.js";

export const BASE_S = 0.05;
export const CAP_S = 2;
/**
 * Before a try that nobody answered is made again. Without a connection each fails at once: four of them, with three such
 * pauses, outlast the one between two attempts to connect (`MAX_RECONNECT_MS`): a sidecar that is back is found.
 */
const RECONNECT_S = 0.15;

/**
 * One call's tries, within its one deadline.
 *
 * Sent again: UNAVAILABLE, with the sidecar's RetryInfo or without (a connection that broke), because the same messageId is
 * taken once. Not sent again: RESOURCE_EXHAUSTED, which is the caller's to decide, a deadline that passed, and calls that
 * are not repeatable.
 */
export class Retries {
  readonly #deadline: number;
  readonly #backOff: BackOff;
  #left: number;
  #unanswered = false;

  /** `deadline` is of the same clock, in seconds, as `now` in `next`. */
  constructor(repeatable: boolean, deadline: number, maxAttempts: number, uniform: Uniform = Math.random) {
    this.#left = repeatable ? maxAttempts - 1 : 0;
    this.#deadline = deadline;
    this.#backOff = new BackOff(BASE_S, CAP_S, uniform);
  }

  /**
   * The seconds after which to try again, or the error that is the answer. It is told of the tries before it: a refusal
   * does not say what became of them.
   */
  next(failed: SidecarError, now: number): number | SidecarError {
    const error = this.#unanswered ? failed.again(true) : failed;
    this.#unanswered = !error.definite;
    if (this.#left === 0 || !passes(error)) return error;
    this.#left -= 1;
    const waitS = this.#backOff.nextS(error instanceof TransportError ? RECONNECT_S : error.retryAfterS);
    // An answer after the deadline is none: better the error that says why.
    return now + waitS < this.#deadline ? waitS : error;
  }
}

function passes(error: SidecarError): boolean {
  if (error instanceof TransportError) return error.code === "UNAVAILABLE";
  return error instanceof Unavailable && !(error instanceof NoAgent);
}
