package dev.wssidecar.client;

/** Whom a broadcast reaches. */
public enum BroadcastScope {
  /** Every context of the token's own user. Scope {@code broadcast:user}. */
  USER,
  /** Every context of the token's own tenant. Scope {@code broadcast:tenant}. */
  TENANT
}
