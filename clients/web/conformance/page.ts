/** The runner in a page or a worker: whoever drives the browser calls `handle` with a line. */

import { makeRunner } from "./runner.js";

export const handle = makeRunner();

Object.assign(globalThis, { handle });
