package dev.wssidecar.client;

import java.time.Duration;

/**
 * How long one send may take.
 *
 * @param timeout its deadline, over all tries; null: the client's
 * @param waitForAck then hold the answer until the client has acknowledged the message, or that long, at most 60 s; the
 *     deadline is later by as much. Null: answer once it is accepted
 */
public record SendOptions(Duration timeout, Duration waitForAck) {
  /** The client's deadline, and no wait for an acknowledgement. */
  public static final SendOptions NONE = new SendOptions(null, null);

  public SendOptions {
    if (timeout != null && (timeout.isNegative() || timeout.isZero())) {
      throw new IllegalArgumentException("timeout is more than 0");
    }
  }

  /**
   * Hold the answer until the client has acknowledged it, or that long.
   *
   * @param waitForAck at most 60 s
   * @return the options
   */
  public static SendOptions waitingForAck(Duration waitForAck) {
    return NONE.withWaitForAck(waitForAck);
  }

  /**
   * With that deadline.
   *
   * @param timeout more than nothing
   * @return other options
   */
  public SendOptions withTimeout(Duration timeout) {
    return new SendOptions(timeout, waitForAck);
  }

  /**
   * With that wait for an acknowledgement.
   *
   * @param waitForAck at most 60 s
   * @return other options
   */
  public SendOptions withWaitForAck(Duration waitForAck) {
    return new SendOptions(timeout, waitForAck);
  }
}
