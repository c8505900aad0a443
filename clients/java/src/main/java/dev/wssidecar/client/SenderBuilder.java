package dev.wssidecar.client;

import java.time.Duration;
import java.util.Objects;
import java.util.function.Consumer;

/** What a sender holds, and what it is told. Made by {@link SidecarClient#senderBuilder()}. */
public final class SenderBuilder {
  private final Link link;
  private final Duration timeout;
  private SenderLimits limits = SenderLimits.DEFAULTS;
  private boolean reportAcknowledged;
  private Consumer<StreamCancellation> onStreamCancelled = cancellation -> {};

  SenderBuilder(Link link, Duration timeout) {
    this.link = link;
    this.timeout = timeout;
  }

  /**
   * What it holds and writes at most.
   *
   * @param limits the limits
   * @return this
   */
  public SenderBuilder limits(SenderLimits limits) {
    this.limits = Objects.requireNonNull(limits, "limits");
    return this;
  }

  /**
   * Let sends wait for the client's acknowledgement.
   *
   * @return this
   */
  public SenderBuilder reportAcknowledged() {
    this.reportAcknowledged = true;
    return this;
  }

  /**
   * Be told when a client wants no more of a response stream, in a context that this sender sends to; once for each token
   * that it sends by. Runs where answers are read: it must not wait.
   *
   * @param onStreamCancelled what to do then
   * @return this
   */
  public SenderBuilder onStreamCancelled(Consumer<StreamCancellation> onStreamCancelled) {
    this.onStreamCancelled = Objects.requireNonNull(onStreamCancelled, "onStreamCancelled");
    return this;
  }

  /**
   * The sender. Nothing is opened yet.
   *
   * @return the sender, to be closed, or its client
   */
  public Sender build() {
    return link.enter(
        new Sender(link, limits, timeout, reportAcknowledged, onStreamCancelled));
  }
}
