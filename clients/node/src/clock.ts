/** Time: one clock that no step of the system's touches, and waits that can be given up. */

import { onAbort } from "./abort.js";

/** Monotonic seconds. */
export function now(): number {
  return performance.now() / 1_000;
}

/**
 * Resolves after so many seconds, or rejects with the signal's reason. The timer holds the process, as any caller does who
 * waits for an outcome.
 */
export function sleep(seconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(() => {
      forget?.();
      resolve();
    }, seconds * 1_000);
    const forget =
      signal &&
      onAbort(signal, () => {
        clearTimeout(timer);
        reject(signal.reason as Error);
      });
  });
}
