/** Keeps one sender full, round and round the targets: how fast is it, and what does it cost? */

import { SidecarError } from "../src/index.js";
import type { SidecarClient } from "../src/index.js";
import { targetFrom } from "./values.js";
import type { TargetValues, Values } from "./values.js";

const IN_FLIGHT = 4_096;

export interface LoadValues {
  readonly targets: readonly TargetValues[];
  readonly payload_bytes: number;
  readonly seconds: number;
}

/** As many callers as the sender takes, each with one message after the other. */
export async function load(client: SidecarClient, said: LoadValues): Promise<Values> {
  const payload = Buffer.from(JSON.stringify("x".repeat(said.payload_bytes - 2)));
  const targets = said.targets.map(targetFrom);
  const sender = client.sender();
  const began = performance.now();
  const end = began + said.seconds * 1_000;
  let [next, sent, refused] = [0, 0, 0];
  const call = async (): Promise<void> => {
    while (performance.now() < end) {
      const target = targets[next++ % targets.length];
      if (target === undefined) return;
      try {
        await sender.send(target, { payload });
        sent += 1;
      } catch (error) {
        if (!(error instanceof SidecarError)) throw error;
        refused += 1;
      }
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, call));
  const seconds = (performance.now() - began) / 1_000;
  await sender.close();
  return { sent, refused, seconds };
}
