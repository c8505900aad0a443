package dev.wssidecar.client;

/** How far a message has come when the answer is made. */
public enum DeliveryState {
  /** In the outbox, not yet written. */
  QUEUED,
  /** Given to the live primary socket's transport, no more than that. */
  WRITTEN,
  /** The client acknowledged it. */
  ACKNOWLEDGED,
  /** It expired unwritten, or was announced to the client as part of a gap. */
  DROPPED
}
