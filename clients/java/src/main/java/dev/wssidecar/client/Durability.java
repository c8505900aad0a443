package dev.wssidecar.client;

/** What an accepted message survives. */
public enum Durability {
  /** Lost when the sidecar ends. */
  MEMORY,
  /** In the sidecar's local store, synced to disk. */
  DISK,
  /** Held by a quorum of the cluster. */
  REPLICATED
}
