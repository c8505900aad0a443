package dev.wssidecar.client;

import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.TransportException;
import io.grpc.Status;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/** Waiting for a future in the calling thread, with what went wrong as it is: no wrapper around it. */
final class Blocking {
  private Blocking() {}

  /**
   * The value. Interrupted, it cancels the future, keeps the interrupt flag and throws TransportException, CANCELLED: what
   * was under way may have been taken.
   */
  static <T> T get(CompletableFuture<T> future) {
    try {
      return future.get();
    } catch (InterruptedException interrupted) {
      future.cancel(true);
      Thread.currentThread().interrupt();
      throw new TransportException(Status.Code.CANCELLED, "the waiting thread was interrupted");
    } catch (CancellationException cancelled) {
      throw new TransportException(Status.Code.CANCELLED, "the call was cancelled");
    } catch (ExecutionException failed) {
      throw thrown(failed.getCause());
    }
  }

  /** The same error with the caller's stack trace, where it is this future's alone. */
  private static RuntimeException thrown(Throwable cause) {
    if (cause instanceof SidecarException error) {
      error.fillInStackTrace();
      return error;
    }
    if (cause instanceof Error error) {
      throw error;
    }
    return cause instanceof RuntimeException error ? error : new CompletionException(cause);
  }

  /** What went wrong, without the wrapper of a dependent future. */
  static Throwable causeOf(Throwable error) {
    return error instanceof CompletionException && error.getCause() != null
        ? error.getCause()
        : error;
  }
}
