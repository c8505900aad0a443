package dev.wssidecar.client;

import java.util.Objects;

/**
 * A message's place in a response stream.
 *
 * @param streamId an identifier, unique within the connection context
 * @param index 0 for the first chunk, then rising by one
 * @param state whether it is the last
 */
public record StreamPlace(String streamId, long index, StreamState state) {
  public StreamPlace {
    Objects.requireNonNull(streamId, "streamId");
    Objects.requireNonNull(state, "state");
  }
}
