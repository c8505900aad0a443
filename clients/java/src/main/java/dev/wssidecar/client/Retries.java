package dev.wssidecar.client;

import dev.wssidecar.client.errors.NoAgentException;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.TransportException;
import dev.wssidecar.client.errors.UnavailableException;
import io.grpc.Status;
import java.time.Duration;
import java.util.OptionalLong;

/**
 * One call's tries, within its one deadline. Sent again: UNAVAILABLE, with the sidecar's RetryInfo or without (a connection
 * that broke), because the same message_id is taken once. Not sent again: RESOURCE_EXHAUSTED, which is the caller's to
 * decide, a deadline that passed, and calls that are not repeatable.
 */
final class Retries {
  /**
   * Before a try that nobody answered is made again. Without a connection each fails at once: four of them, with three
   * such pauses, outlast the one between two attempts to connect ({@link Reconnects}): a sidecar that is back is found.
   */
  static final Duration RECONNECT = Duration.ofMillis(150);

  private final BackOff backOff;
  private final long deadline;
  private int left;
  private boolean unanswered;

  /** {@code deadline} is of the same clock as {@code now} below, in nanoseconds. */
  Retries(boolean repeatable, long deadline, int maxAttempts, BackOff backOff) {
    this.left = repeatable ? maxAttempts - 1 : 0;
    this.deadline = deadline;
    this.backOff = backOff;
  }

  /**
   * The nanoseconds after which to try again; none: give up, this error is the answer. The error is told of the tries
   * before it: a refusal does not say what became of them.
   */
  OptionalLong waitNanos(SidecarException error, long now) {
    boolean definite = error.definite();
    if (unanswered) {
      error.followsUnanswered();
    }
    unanswered = !definite;
    if (left == 0 || !passing(error)) {
      return OptionalLong.empty();
    }
    left--;
    Duration asked = error.retryAfter().orElse(Duration.ZERO);
    long wait = backOff.nextNanos(error instanceof TransportException ? RECONNECT : asked);
    // An answer after the deadline is none: better the error that says why.
    return now + wait - deadline < 0 ? OptionalLong.of(wait) : OptionalLong.empty();
  }

  private static boolean passing(SidecarException error) {
    if (error instanceof TransportException) {
      return error.code() == Status.Code.UNAVAILABLE;
    }
    return error instanceof UnavailableException && !(error instanceof NoAgentException);
  }
}
