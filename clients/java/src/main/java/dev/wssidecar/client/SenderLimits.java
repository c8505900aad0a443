package dev.wssidecar.client;

/**
 * What a sender holds and writes at most.
 *
 * @param maxInFlight messages on their way; further sends wait
 * @param maxLanes tokens in use at once on the stream, at most 1,024; idle ones give way
 * @param maxFrameItems messages a frame, at most 1,000
 * @param maxFrameBytes bytes of messages a frame, but for one that is larger by itself
 * @param maxMessageBytes a larger message is refused here, because a frame over the sidecar's {@code
 *     grpc.max_request_bytes} (4 MiB) would break the stream for everybody's messages
 */
public record SenderLimits(
    int maxInFlight, int maxLanes, int maxFrameItems, int maxFrameBytes, int maxMessageBytes) {
  private static final int MIB = 1_048_576;
  private static final int MAX_LANES = 1_024;
  private static final int MAX_FRAME_ITEMS = 1_000;

  /** 4,096 messages in flight, and as much a frame as the sidecar takes well. */
  public static final SenderLimits DEFAULTS =
      new SenderLimits(4_096, MAX_LANES, MAX_FRAME_ITEMS, MIB, 4 * MIB - 65_536);

  public SenderLimits {
    check("maxInFlight", maxInFlight, 1_000_000);
    check("maxLanes", maxLanes, MAX_LANES);
    check("maxFrameItems", maxFrameItems, MAX_FRAME_ITEMS);
    check("maxFrameBytes", maxFrameBytes, 64 * MIB);
    check("maxMessageBytes", maxMessageBytes, 64 * MIB);
  }

  /**
   * With that many messages in flight.
   *
   * @param maxInFlight 1 to 1,000,000
   * @return other limits
   */
  public SenderLimits withMaxInFlight(int maxInFlight) {
    return new SenderLimits(maxInFlight, maxLanes, maxFrameItems, maxFrameBytes, maxMessageBytes);
  }

  /**
   * With that many lanes.
   *
   * @param maxLanes 1 to 1,024
   * @return other limits
   */
  public SenderLimits withMaxLanes(int maxLanes) {
    return new SenderLimits(maxInFlight, maxLanes, maxFrameItems, maxFrameBytes, maxMessageBytes);
  }

  private static void check(String name, int value, int most) {
    if (value < 1 || value > most) {
      throw new IllegalArgumentException(name + " is 1 to " + most);
    }
  }
}
