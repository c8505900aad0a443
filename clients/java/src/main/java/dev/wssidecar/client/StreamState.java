package dev.wssidecar.client;

/** Where a chunk stands in its response stream. */
public enum StreamState {
  /** A chunk before the last. */
  OPEN,
  /** The last chunk. */
  END,
  /** The last chunk of a stream that failed. */
  ERROR
}
