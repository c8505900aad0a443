// Removes what the compiler wrote: a file whose source has gone must not stay in a package or among the tests.
import { rmSync } from "node:fs";

for (const folder of ["dist", "build"]) {
  rmSync(new URL(`../${folder}`, import.meta.url), { recursive: true, force: true });
}
