/** The conformance runner: reads one command a line, prints what came of it, until its input ends. */

import { createInterface } from "node:readline";
import { SidecarError } from "../src/index.js";
import { COMMANDS } from "./service.js";
import { error } from "./values.js";
import type { Values } from "./values.js";

interface Told {
  readonly id: number;
  readonly do: string;
  readonly with?: Values;
}

async function outcome(told: Told): Promise<Values> {
  const command = COMMANDS.get(told.do);
  if (command === undefined) return { error: { reason: "UNKNOWN_COMMAND" } };
  try {
    return { ok: await command((told.with ?? {}) as never) };
  } catch (failed) {
    if (failed instanceof SidecarError) return { error: error(failed) };
    return { error: { reason: "CRASH", message: String(failed) } };
  }
}

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const told = JSON.parse(line) as Told;
  void outcome(told).then((came) => {
    process.stdout.write(`${JSON.stringify({ id: told.id, ...came })}\n`);
  });
});
// What is still open is the driver's to have closed.
lines.on("close", () => {
  process.exit(0);
});
