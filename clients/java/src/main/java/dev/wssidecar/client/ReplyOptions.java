package dev.wssidecar.client;

import java.time.Duration;
import java.util.Objects;

/**
 * What may be said of a response stream.
 *
 * @param eventType of every chunk; empty for none
 * @param streamId an identifier, unique within the context; empty: made up
 * @param chunkTimeout how long a chunk is tried
 */
public record ReplyOptions(String eventType, String streamId, Duration chunkTimeout) {
  /** No event type, an id that is made up, 30 s a chunk. */
  public static final ReplyOptions DEFAULTS = new ReplyOptions("", "", Duration.ofSeconds(30));

  public ReplyOptions {
    Objects.requireNonNull(eventType, "eventType");
    Objects.requireNonNull(streamId, "streamId");
    Objects.requireNonNull(chunkTimeout, "chunkTimeout");
  }

  /**
   * With that event type.
   *
   * @param eventType of every chunk
   * @return other options
   */
  public ReplyOptions withEventType(String eventType) {
    return new ReplyOptions(eventType, streamId, chunkTimeout);
  }

  /**
   * With that id.
   *
   * @param streamId an identifier
   * @return other options
   */
  public ReplyOptions withStreamId(String streamId) {
    return new ReplyOptions(eventType, streamId, chunkTimeout);
  }

  /**
   * With that patience.
   *
   * @param chunkTimeout how long a chunk is tried
   * @return other options
   */
  public ReplyOptions withChunkTimeout(Duration chunkTimeout) {
    return new ReplyOptions(eventType, streamId, chunkTimeout);
  }
}
