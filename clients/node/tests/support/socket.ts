/** Where nobody listens until a test does: a free port may be given to another process meanwhile. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";

/** The address of a Unix socket in a folder that goes with the test. */
export function socketAddress(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "ws-sidecar-"));
  t.after(() => {
    rmSync(folder, { recursive: true });
  });
  return `unix:${folder}/grpc.sock`;
}
