package dev.wssidecar.conformance;

import com.google.gson.JsonObject;
import dev.wssidecar.client.InboundMessage;
import dev.wssidecar.client.ReplyOptions;
import dev.wssidecar.client.ReplyStream;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;

/** A message's handler, which does in its own thread what it is told, until it is told to end or is cancelled. */
final class ReplyUnderTest {
  /** What the handler is to do next; true: it goes on. */
  private interface Step {
    boolean take() throws Exception;
  }

  private final InboundMessage message;
  private final BlockingQueue<Step> steps = new LinkedBlockingQueue<>();
  private final CompletableFuture<JsonObject> cancelled = new CompletableFuture<>();
  private ReplyStream stream;

  ReplyUnderTest(InboundMessage message) {
    this.message = message;
  }

  /** The handler. */
  void serve() throws Exception {
    try {
      boolean more = true;
      while (more) {
        more = steps.take().take();
      }
    } catch (InterruptedException told) {
      if (message.isCancelled()) {
        cancelled.complete(new JsonObject());
      }
      throw told;
    }
  }

  CompletableFuture<JsonObject> send(JsonObject content, String eventType, String streamId) {
    CompletableFuture<JsonObject> done = new CompletableFuture<>();
    steps.add(
        () -> {
          if (stream == null) {
            stream =
                message.reply(
                    ReplyOptions.DEFAULTS.withEventType(eventType).withStreamId(streamId));
          }
          try {
            done.complete(Json.receipt(stream.send(Json.message(content))));
            return true;
          } catch (RuntimeException refused) {
            done.completeExceptionally(refused);
            if (message.isCancelled()) {
              cancelled.complete(new JsonObject());
              throw refused;
            }
            return true;
          }
        });
    return done;
  }

  /** The handler returns. */
  CompletableFuture<JsonObject> end() {
    CompletableFuture<JsonObject> done = new CompletableFuture<>();
    steps.add(
        () -> {
          done.complete(new JsonObject());
          return false;
        });
    return done;
  }

  /** The handler throws. */
  CompletableFuture<JsonObject> fail() {
    CompletableFuture<JsonObject> done = new CompletableFuture<>();
    steps.add(
        () -> {
          done.complete(new JsonObject());
          throw new IllegalStateException("the handler was told to fail");
        });
    return done;
  }

  CompletableFuture<JsonObject> cancelled() {
    return cancelled;
  }
}
