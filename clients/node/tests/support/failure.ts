/** How a promise fails, for a test to look at. */

import assert from "node:assert/strict";
import { SidecarError } from "../../src/index.js";

/** What it rejects with. */
export async function rejection(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new assert.AssertionError({ message: "it did not fail" });
}

/** The client's error that it rejects with. */
export async function failure(promise: Promise<unknown>): Promise<SidecarError> {
  const error = await rejection(promise);
  assert.ok(error instanceof SidecarError, String(error));
  return error;
}

/** Resolves after so many milliseconds. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
