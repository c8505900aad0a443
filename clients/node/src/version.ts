/** The version of this client, which is that of the contract's package `sidecar.api.v1` that it speaks. */
export const VERSION = "0.1.0";
