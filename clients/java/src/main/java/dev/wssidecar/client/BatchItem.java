package dev.wssidecar.client;

import java.util.Objects;

/**
 * One message of a batch and where it goes.
 *
 * @param recipient where it goes
 * @param message what is said
 */
public record BatchItem(Recipient recipient, Message message) {
  public BatchItem {
    Objects.requireNonNull(recipient, "recipient");
    Objects.requireNonNull(message, "message");
  }
}
