// @ts-check
/** Serves the example on loopback: `node main.js [PORT]`; prints where. */

import { once } from "node:events";
import { SidecarClient } from "@ws-sidecar/client";
import { makeService } from "./service.js";

const sidecar = new SidecarClient();
const server = makeService(sidecar).listen(Number(process.argv[2] ?? 8000), "127.0.0.1");
const stop = () => {
  server.close(() => void sidecar.close());
  server.closeIdleConnections();
};
process.once("SIGTERM", stop).once("SIGINT", stop);
await once(server, "listening");
const address = server.address();
console.log(`listening on http://127.0.0.1:${typeof address === "object" ? address?.port : address}`);
