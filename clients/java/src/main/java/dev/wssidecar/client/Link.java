package dev.wssidecar.client;

import dev.wssidecar.client.errors.TransportException;
import io.grpc.Channel;
import io.grpc.Status;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;

/** What a client, its senders and its agents share: one channel, one timer thread, and who works on them. */
final class Link {
  private static final long CLOSE_TIMEOUT_S = 1;

  private final Settings settings;
  private final Channels.Opened opened;
  private final Channel channel;
  private final ScheduledThreadPoolExecutor timer;
  private final Set<CompletableFuture<?>> calls = ConcurrentHashMap.newKeySet();
  private final Set<Sender> senders = ConcurrentHashMap.newKeySet();
  private volatile boolean closed;

  Link(Settings settings) {
    this.settings = settings;
    this.opened = Channels.open(settings);
    this.channel = Traces.on(opened.channel());
    this.timer = new ScheduledThreadPoolExecutor(1, Link::timerThread);
    timer.setRemoveOnCancelPolicy(true);
    timer.setExecuteExistingDelayedTasksAfterShutdownPolicy(false);
    new Reconnects(opened.channel(), timer, settings).watch();
  }

  private static Thread timerThread(Runnable work) {
    Thread thread = new Thread(work, "sidecar-timer");
    thread.setDaemon(true);
    return thread;
  }

  Settings settings() {
    return settings;
  }

  Channel channel() {
    return channel;
  }

  /** For what is short and never waits. */
  ScheduledThreadPoolExecutor timer() {
    return timer;
  }

  boolean closed() {
    return closed;
  }

  /** A call is under way, until it is done. */
  void enter(CompletableFuture<?> call) {
    checkOpen();
    calls.add(call);
    call.whenComplete((value, error) -> calls.remove(call));
  }

  Sender enter(Sender sender) {
    checkOpen();
    senders.add(sender);
    return sender;
  }

  void leave(Sender sender) {
    senders.remove(sender);
  }

  void checkOpen() {
    if (closed) {
      throw new IllegalStateException("the client is closed");
    }
  }

  /** Close the senders side by side, bounded, then the channel; calls under way end. Idempotent. */
  void close() {
    closed = true;
    Sender.close(List.copyOf(senders), Sender.CLOSE_TIMEOUT);
    opened.channel().shutdownNow();
    timer.shutdownNow();
    TransportException error =
        new TransportException(Status.Code.CANCELLED, "the client was closed");
    calls.forEach(call -> call.completeExceptionally(error));
    try {
      opened.channel().awaitTermination(CLOSE_TIMEOUT_S, TimeUnit.SECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
    opened.release().run();
  }

  @Override
  public String toString() {
    return settings.endpoint() + (closed ? ", closed" : ", open");
  }
}
