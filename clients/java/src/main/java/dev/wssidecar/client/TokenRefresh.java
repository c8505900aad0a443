package dev.wssidecar.client;

import dev.wssidecar.client.errors.ManagerGoneException;
import dev.wssidecar.client.errors.SidecarException;
import dev.wssidecar.client.errors.TokenException;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.lang.ref.WeakReference;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/** Keeps the tokens of living contexts good: of those that the agent or its caller still holds, each before it ends. */
final class TokenRefresh {
  /** When to try again what failed for now; a token has minutes left then. */
  private static final Duration AGAIN = Duration.ofSeconds(5);

  private static final Logger LOG = System.getLogger("dev.wssidecar.client");

  private final ScheduledExecutorService timer;
  private final Function<String, CompletableFuture<ContextToken>> refresh;
  private volatile boolean stopped;

  TokenRefresh(
      ScheduledExecutorService timer, Function<String, CompletableFuture<ContextToken>> refresh) {
    this.timer = timer;
    this.refresh = refresh;
  }

  /** A token has come: refresh it in time, unless another has come by then. */
  void keep(AgentContext context) {
    Duration after = context.refreshAfter();
    if (after.compareTo(TokenLife.UNKNOWN) > 0) {
      later(new WeakReference<>(context), context.contextToken(), after);
    }
  }

  void stop() {
    stopped = true;
  }

  private void later(WeakReference<AgentContext> held, String token, Duration after) {
    try {
      timer.schedule(() -> look(held, token), after.toNanos(), TimeUnit.NANOSECONDS);
    } catch (RejectedExecutionException closed) {
      // The client is closed: nobody sends by that token any more.
    }
  }

  private void look(WeakReference<AgentContext> held, String token) {
    AgentContext context = held.get();
    boolean wanted = context != null && !context.ended() && context.contextToken().equals(token);
    if (wanted && !stopped) {
      refresh
          .apply(token)
          .whenComplete((renewed, error) -> refreshed(context, token, renewed, error));
    }
  }

  private void refreshed(
      AgentContext context, String token, ContextToken renewed, Throwable error) {
    if (error == null) {
      if (context.renew(renewed.text())) {
        keep(context);
      }
    } else if (error instanceof ManagerGoneException) {
      context.end();
    } else if (error instanceof SidecarException refused && !(error instanceof TokenException)) {
      // One that is good no more is not refreshed: the next event brings another.
      String why = refused.reason().isEmpty() ? refused.code().name() : refused.reason();
      LOG.log(Level.WARNING, "a context token could not be refreshed: {0}", why);
      later(new WeakReference<>(context), token, AGAIN);
    }
  }
}
