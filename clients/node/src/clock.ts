/** Time: one clock that no step of the system's touches, and waits that can be given up. */

/** Monotonic seconds. */
export function now(): number {
  return performance.now() / 1_000;
}

/**
 * Resolves after so many seconds, or rejects with the signal's reason. The timer holds no process: what waits for the
 * promise has something that does.
 */
export function sleep(seconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const abort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, seconds * 1_000);
    signal?.addEventListener("abort", abort, { once: true });
  });
}
