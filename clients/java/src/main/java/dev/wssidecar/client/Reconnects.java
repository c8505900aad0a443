package dev.wssidecar.client;

import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import java.time.Duration;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * Connects again soon. The sidecar is next door: it is back as soon as it has started, while gRPC's own back-off, which
 * cannot be set, grows to two minutes. So after a failure that back-off is cut short, within 0.3 s each time: the tries of a
 * call ({@link Retries}) outlast that.
 */
final class Reconnects {
  private static final Duration BASE = Duration.ofMillis(100);
  private static final Duration CAP = Duration.ofMillis(250);

  private final ManagedChannel channel;
  private final ScheduledExecutorService timer;
  private final BackOff backOff;
  private boolean scheduled;

  Reconnects(ManagedChannel channel, ScheduledExecutorService timer, Settings settings) {
    this.channel = channel;
    this.timer = timer;
    this.backOff = new BackOff(BASE, CAP, settings.uniform());
  }

  /** Look at the channel's state now, and whenever it changes. */
  void watch() {
    ConnectivityState state = channel.getState(false);
    if (state == ConnectivityState.SHUTDOWN) {
      return;
    }
    look(state);
    channel.notifyWhenStateChanged(state, this::watch);
  }

  private synchronized void look(ConnectivityState state) {
    if (state == ConnectivityState.READY) {
      backOff.reset();
    } else if (state == ConnectivityState.TRANSIENT_FAILURE && !scheduled) {
      scheduled = true;
      try {
        timer.schedule(this::again, backOff.nextNanos(BASE.dividedBy(2)), TimeUnit.NANOSECONDS);
      } catch (RejectedExecutionException closed) {
        // The client is closed: there is nothing to come back for.
      }
    }
  }

  private void again() {
    synchronized (this) {
      scheduled = false;
    }
    channel.resetConnectBackoff();
    // The channel stays in this state while it tries, so that no change may be told of.
    look(channel.getState(false));
  }
}
