package dev.wssidecar.client;

import java.time.Instant;

/**
 * What an OK says about a message.
 *
 * @param messageId the message's own id, or the one that was made up
 * @param sequence its place in the order of its connection context: from 1, without holes
 * @param state how far it had come when the answer was made
 * @param durability what it survives
 * @param connections how many sockets were given it before the answer was made
 * @param duplicate it had been accepted before: the first receipt but for the state, and nothing was delivered now
 * @param acceptedTime when it was accepted, by the sidecar's clock
 */
public record Receipt(
    String messageId,
    long sequence,
    DeliveryState state,
    Durability durability,
    int connections,
    boolean duplicate,
    Instant acceptedTime) {

  /** The same message, come that far. */
  Receipt withState(DeliveryState state) {
    return new Receipt(messageId, sequence, state, durability, connections, duplicate, acceptedTime);
  }
}
