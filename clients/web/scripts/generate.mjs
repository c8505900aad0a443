/**
 * Copies the built client to where the sidecar's demo page has it; --check writes nothing and fails where the two differ.
 * The copy is committed because the sidecar's wheel is built without Node.
 */

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const built = readFileSync(join(root, "dist", "ws-sidecar.min.js"));
const name = "sidecar/ops/static/ws-sidecar.min.js";
const copy = join(root, "..", "..", name);

if (!process.argv.includes("--check")) {
  writeFileSync(copy, built);
} else if (!existsSync(copy) || !built.equals(readFileSync(copy))) {
  console.error(`not current: ${name}\nrun: npm run generate`);
  process.exitCode = 1;
}
