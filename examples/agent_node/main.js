// @ts-check
/** Runs the demo agent until SIGTERM or SIGINT. */

import { SidecarClient, SidecarError } from "@ws-sidecar/client";
import { makeAgent } from "./agent.js";

const EXIT_UNAVAILABLE = 69;
const ATTACH_TIMEOUT_S = 15;
const GRACE_S = 1;

const client = new SidecarClient();
const agent = makeAgent(client).start();
const stop = () => void agent.stop({ graceS: GRACE_S }).then(() => client.close());
process.once("SIGTERM", stop).once("SIGINT", stop);
try {
  await agent.waitAttached({ timeoutS: ATTACH_TIMEOUT_S });
  console.log("demo agent attached");
} catch (refusal) {
  if (!(refusal instanceof SidecarError)) throw refusal;
  console.error(`demo agent: not attached: ${refusal.reason || refusal.code}`);
  process.exitCode = EXIT_UNAVAILABLE;
  stop();
}
