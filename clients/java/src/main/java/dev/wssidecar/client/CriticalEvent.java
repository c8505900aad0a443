package dev.wssidecar.client;

import java.util.Objects;

/**
 * A critical event: never dropped for another, kept as long as its manager, sent again until the client acknowledges it.
 *
 * @param eventType an identifier: what kind of event it is
 * @param json the content: exactly one JSON value
 * @param messageId the idempotency key; empty: made up
 */
public record CriticalEvent(String eventType, String json, String messageId) {
  public CriticalEvent {
    Objects.requireNonNull(eventType, "eventType");
    Objects.requireNonNull(json, "json");
    Objects.requireNonNull(messageId, "messageId");
  }

  /**
   * An event with a message_id that is made up.
   *
   * @param eventType an identifier
   * @param json exactly one JSON value
   * @return the event
   */
  public static CriticalEvent of(String eventType, String json) {
    return new CriticalEvent(eventType, json, "");
  }

  /** Says nothing of the content. */
  @Override
  public String toString() {
    return "CriticalEvent[eventType=" + eventType + ", messageId=" + messageId + "]";
  }
}
