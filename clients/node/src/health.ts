/** Whether the sidecar serves: grpc.health.v1 by its bytes, so that no further package is needed for one number. */

export const WATCH = "/grpc.health.v1.Health/Watch";

/** HealthCheckRequest for the empty service name: the sidecar as a whole. */
export const THE_WHOLE = Buffer.alloc(0);

/** HealthCheckResponse: field 1, varint, SERVING. */
const SERVING = Buffer.from([0x08, 0x01]);

/** Whether a HealthCheckResponse says SERVING. */
export function isServing(response: Buffer): boolean {
  return response.equals(SERVING);
}
