package dev.wssidecar.client;

import java.util.concurrent.CompletableFuture;

/** A future whose cancellation reaches what works for it. */
final class Outcome<T> extends CompletableFuture<T> {
  private volatile Runnable onCancel = () -> {};

  /** What to do when the caller wants it no more; at once where that was said already. */
  void whenCancelled(Runnable cancel) {
    onCancel = cancel;
    if (isCancelled()) {
      cancel.run();
    }
  }

  @Override
  public boolean cancel(boolean mayInterruptIfRunning) {
    boolean cancelled = super.cancel(mayInterruptIfRunning);
    onCancel.run();
    return cancelled;
  }

  /** Complete this as that one ends. */
  void follow(CompletableFuture<T> other) {
    whenCancelled(() -> other.cancel(true));
    other.whenComplete(
        (value, error) -> {
          if (error == null) {
            complete(value);
          } else {
            completeExceptionally(Blocking.causeOf(error));
          }
        });
  }
}
