package dev.wssidecar.client;

import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.RejectedExecutionException;

/**
 * One handler at work: the thread that it runs in, the streams that it has open, whether it is still wanted. It interrupts
 * that thread while it handles this and nothing else.
 */
final class Answering {
  private final Executor executor;
  private final CompletableFuture<Void> cancelledFuture = new CompletableFuture<>();
  private final Set<ReplyStream> streams = new LinkedHashSet<>();
  private Thread thread;
  private boolean cancelled;
  private boolean interrupted;

  Answering(Executor executor) {
    this.executor = executor;
  }

  CompletableFuture<Void> cancelledFuture() {
    return cancelledFuture;
  }

  synchronized boolean isCancelled() {
    return cancelled;
  }

  /** It was told to end, by the client or because the agent stops. */
  synchronized boolean wasTold() {
    return cancelled || interrupted;
  }

  /** The handler runs in this thread from now on; false: nobody wants an answer, so it is not to begin. */
  synchronized boolean begin() {
    if (cancelled) {
      return false;
    }
    thread = Thread.currentThread();
    if (interrupted) {
      thread.interrupt();
    }
    return true;
  }

  /** The handler has returned: nothing interrupts this thread any more, and what did is forgotten. */
  synchronized void end() {
    thread = null;
    Thread.interrupted();
  }

  /** The client wants no more. Idempotent. */
  void cancel() {
    synchronized (this) {
      if (cancelled) {
        return;
      }
      cancelled = true;
      interruptHandler();
    }
    // What a handler hangs on it may wait: not in the thread that reads the agent's events.
    try {
      executor.execute(() -> cancelledFuture.complete(null));
    } catch (RejectedExecutionException shutDown) {
      cancelledFuture.complete(null);
    }
  }

  /** The client wants no more, and the thread that is told so is the one that asks: it throws instead. */
  void cancelHere() {
    cancel();
    synchronized (this) {
      if (thread == Thread.currentThread()) {
        Thread.interrupted();
      }
    }
  }

  /** The agent stops: the handler is to end, and its streams to fail. */
  synchronized void interrupt() {
    interrupted = true;
    interruptHandler();
  }

  private void interruptHandler() {
    if (thread != null && thread != Thread.currentThread()) {
      thread.interrupt();
    }
  }

  synchronized void add(ReplyStream stream) {
    streams.add(stream);
  }

  synchronized void remove(ReplyStream stream) {
    streams.remove(stream);
  }

  synchronized boolean answers(String streamId) {
    return streams.stream().anyMatch(stream -> stream.id().equals(streamId));
  }

  /** The streams that are not over. */
  synchronized List<ReplyStream> open() {
    return new ArrayList<>(streams);
  }
}
