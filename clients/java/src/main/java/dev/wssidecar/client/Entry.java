package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.SidecarExceptions;
import java.util.concurrent.CompletableFuture;
import java.util.function.Consumer;

/**
 * One message of a sender on its way, and the future that its caller holds: one object, because there are many. All fields
 * but the future's own are guarded by the sender's lock; it is completed outside of that.
 */
final class Entry extends CompletableFuture<Receipt> {
  /** Its place among all, kept when it is sent again. */
  final long order;

  final Recipient to;
  final sidecar.api.v1.Message message;

  /** Nanoseconds to wait for the client's acknowledgement once it is accepted; -1: do not. */
  final long waitForAckNanos;

  /** When it is given up, by System.nanoTime(): the acceptance first, then the acknowledgement. */
  long deadline;

  Receipt receipt;
  SidecarException error;
  boolean written;

  /** It was written to a stream that ended before the answer. */
  boolean unanswered;

  boolean abandoned;
  boolean left;

  private final Consumer<Entry> onCancel;

  Entry(
      long order,
      Recipient to,
      sidecar.api.v1.Message message,
      long deadline,
      long waitForAckNanos,
      Consumer<Entry> onCancel) {
    this.order = order;
    this.to = to;
    this.message = message;
    this.deadline = deadline;
    this.waitForAckNanos = waitForAckNanos;
    this.onCancel = onCancel;
  }

  int size() {
    return message.getSerializedSize();
  }

  /** Tell the caller. One that has a receipt keeps it, whatever came later. */
  void tell() {
    if (receipt != null) {
      complete(receipt);
    } else {
      completeExceptionally(error);
    }
  }

  /** It was refused, or given up: an error of its own, so that each caller has its own stack trace. */
  void fail(SidecarException cause) {
    error = SidecarExceptions.copyOf(cause);
    if (unanswered) {
      error.followsUnanswered();
    }
  }

  @Override
  public boolean cancel(boolean mayInterruptIfRunning) {
    boolean cancelled = super.cancel(mayInterruptIfRunning);
    onCancel.accept(this);
    return cancelled;
  }

  @Override
  public <U> CompletableFuture<U> newIncompleteFuture() {
    return new CompletableFuture<>();
  }
}
