package dev.wssidecar.client;

/** How a payload is to be read. */
public enum ContentType {
  /** Exactly one RFC 8259 value, in UTF-8; its bytes reach the client unchanged. */
  JSON,
  /** UTF-8 text. */
  TEXT,
  /** Any bytes. */
  BINARY
}
