/** Being told of an abort: by one listener a signal, however many wait for it. Node warns of a leak beyond ten. */

const waiting = new WeakMap<AbortSignal, Set<() => void>>();

/** Call this when the signal is aborted, unless what is returned was called before. */
export function onAbort(signal: AbortSignal, call: () => void): () => void {
  const calls = waiting.get(signal) ?? listen(signal);
  calls.add(call);
  return () => {
    calls.delete(call);
  };
}

function listen(signal: AbortSignal): Set<() => void> {
  const calls = new Set<() => void>();
  waiting.set(signal, calls);
  signal.addEventListener(
    "abort",
    () => {
      for (const call of [...calls]) call();
    },
    { once: true },
  );
  return calls;
}
