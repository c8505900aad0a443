/** Fails when what a page loads is 6 KB or more: dist/ws-sidecar.min.js, gzipped. */

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const LIMIT_BYTES = 6_000;

const file = join(dirname(fileURLToPath(import.meta.url)), "..", "dist", "ws-sidecar.min.js");
const bytes = gzipSync(readFileSync(file), { level: 9 }).length;
console.log(`${bytes} of ${LIMIT_BYTES} bytes gzipped`);
process.exitCode = bytes < LIMIT_BYTES ? 0 : 1;
