/** The runner in Node: commands on standard input, answers on standard output, each when it is done. */

import { createInterface } from "node:readline";
import { WebSocket } from "ws";
import { makeRunner } from "./runner.js";

const handle = makeRunner(WebSocket);

for await (const line of createInterface({ input: process.stdin })) {
  if (!line) continue;
  void handle(line).then((answer) => process.stdout.write(`${answer}\n`));
}
process.exit();
