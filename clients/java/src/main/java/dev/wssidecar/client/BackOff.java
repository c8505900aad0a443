package dev.wssidecar.client;

import java.time.Duration;
import java.util.function.DoubleSupplier;

/**
 * How long to wait before the next try: uniform between 0 and a bound that doubles with every try, so that many clients do
 * not come back at once. Not for many threads.
 */
final class BackOff {
  static final Duration BASE = Duration.ofMillis(50);
  static final Duration CAP = Duration.ofSeconds(2);
  private static final int MAX_DOUBLINGS = 30;

  private final long baseNanos;
  private final long capNanos;
  private final DoubleSupplier uniform;
  private int tries;

  /** {@code uniform} gives numbers of [0, 1). */
  BackOff(Duration base, Duration cap, DoubleSupplier uniform) {
    this.baseNanos = base.toNanos();
    this.capNanos = cap.toNanos();
    this.uniform = uniform;
  }

  /** The nanoseconds to wait before the next try; what somebody asked for is added, not shortened. */
  long nextNanos(Duration atLeast) {
    double bound = Math.min(capNanos, baseNanos * (double) (1L << Math.min(tries, MAX_DOUBLINGS)));
    tries++;
    return atLeast.toNanos() + (long) (bound * uniform.getAsDouble());
  }

  /** How many have failed since it last went well. */
  int tries() {
    return tries;
  }

  /** It went well: begin from the base again. */
  void reset() {
    tries = 0;
  }
}
