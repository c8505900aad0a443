package dev.wssidecar.client;

import java.util.Objects;

/**
 * What a service takes.
 *
 * @param event the messages of that event; {@code *} is whatever no other service takes
 * @param tenantId of that tenant; empty is every tenant that the service may have
 */
public record Subscription(String event, String tenantId) {
  public Subscription {
    Objects.requireNonNull(event, "event");
    Objects.requireNonNull(tenantId, "tenantId");
  }

  /**
   * That event, of every tenant that the service may have.
   *
   * @param event the event
   * @return the subscription
   */
  public static Subscription to(String event) {
    return new Subscription(event, "");
  }
}
