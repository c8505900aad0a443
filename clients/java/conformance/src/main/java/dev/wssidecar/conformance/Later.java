package dev.wssidecar.conformance;

import com.google.gson.JsonObject;
import java.util.concurrent.CompletableFuture;

/** Commands that wait, each in a thread of its own: one holds up no other. */
final class Later {
  /** What a command does. */
  @FunctionalInterface
  interface Work {
    JsonObject done() throws Exception;
  }

  private Later() {}

  static CompletableFuture<JsonObject> run(Runnable work) {
    return get(
        () -> {
          work.run();
          return new JsonObject();
        });
  }

  static CompletableFuture<JsonObject> get(Work work) {
    CompletableFuture<JsonObject> done = new CompletableFuture<>();
    Thread thread =
        new Thread(
            () -> {
              try {
                done.complete(work.done());
              } catch (Throwable error) {
                done.completeExceptionally(error);
              }
            });
    thread.setDaemon(true);
    thread.start();
    return done;
  }
}
