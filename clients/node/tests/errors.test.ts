import assert from "node:assert/strict";
import { test } from "node:test";
import { Metadata } from "@grpc/grpc-js";
import * as client from "../src/index.js";
import { errorFromCall, errorFromReason, errorFromStatus } from "../src/error-catalogue.js";
import { ErrorReason } from "../src/generated/sidecar/api/v1/error_reason.js";
import { refused, statusOf } from "./support/sidecar.js";

const REASONS = Object.keys(ErrorReason)
  .filter((name) => name.startsWith("ERROR_REASON_") && name !== "ERROR_REASON_UNSPECIFIED")
  .map((name) => name.replace("ERROR_REASON_", ""));

test("every reason of the catalogue has a class of its own", () => {
  const classes = REASONS.map((reason) => errorFromReason(reason, "").constructor);
  assert.equal(new Set(classes).size, REASONS.length);
  assert.ok(REASONS.length >= 28);
  for (const reason of REASONS) {
    const name = reason.toLowerCase().replace(/(^|_)([a-z])/g, (_, __, letter: string) => letter.toUpperCase());
    assert.equal(errorFromReason(reason, "").name, name);
    assert.notEqual(errorFromReason(reason, "").code, "UNKNOWN");
  }
});

test("a refusal says all that the sidecar said", () => {
  const violations = [{ field: "message.ttl", description: "more than 0" }];
  const error = errorFromCall(refused({ code: 3, reason: "BAD_REQUEST", violations, message: "not valid" }));
  assert.ok(error instanceof client.BadRequest);
  assert.equal(error.code, "INVALID_ARGUMENT");
  assert.equal(error.message, "not valid");
  assert.deepEqual(error.violations, violations);
  assert.equal(error.definite, true);
  const full = errorFromCall(refused({ code: 8, reason: "OUTBOX_FULL", retryAfterS: 1.5 }));
  assert.equal(full.retryAfterS, 1.5);
  assert.equal(errorFromCall(refused({ code: 13, reason: "INTERNAL", incidentId: "i-1" })).incidentId, "i-1");
});

test("a reason that this version does not know has its code's class", () => {
  const error = errorFromStatus(statusOf({ code: 14, reason: "BRAND_NEW", retryAfterS: 2 }));
  assert.ok(error instanceof client.Unavailable);
  assert.equal(error.reason, "BRAND_NEW");
  assert.ok(errorFromStatus(statusOf({ code: 5, reason: "BRAND_NEW" })) instanceof client.SidecarError);
});

test("what is not the sidecar's word is the transport's", () => {
  assert.ok(errorFromCall(refused({ code: 14, reason: "" })) instanceof client.TransportError);
  const foreign = statusOf({ code: 14, reason: "DRAINING" });
  assert.ok(errorFromStatus({ ...foreign, details: [] }) instanceof client.TransportError);
  // A proxy's status beside the sidecar's details: it is believed, and they are not.
  const { metadata } = refused({ code: 5, reason: "MANAGER_GONE" });
  const proxied = errorFromCall({ code: 14, details: "upstream", metadata });
  assert.equal(proxied.code, "UNAVAILABLE");
  assert.equal(proxied.reason, "");
  const broken = new Metadata();
  broken.set("grpc-status-details-bin", Buffer.from([0xff, 0xff]));
  assert.equal(errorFromCall({ code: 14, details: "", metadata: broken }).reason, "");
});

test("definite says whether nothing was changed", () => {
  for (const reason of REASONS) {
    assert.equal(errorFromReason(reason, "").definite, !["INTERNAL", "OUTCOME_UNKNOWN"].includes(reason), reason);
  }
  assert.equal(new client.TransportError("UNAVAILABLE", "", "").definite, false);
  assert.equal(new client.TransportError("UNIMPLEMENTED", "", "").definite, true);
  // A refusal speaks of its own try: behind one that had no answer it is not definite.
  const behind = errorFromReason("MANAGER_GONE", "gone").again(true);
  assert.ok(behind instanceof client.ManagerGone);
  assert.equal(behind.definite, false);
  assert.equal(behind.again().definite, false);
});
