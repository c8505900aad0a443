package dev.wssidecar.examples.agent;

import dev.wssidecar.client.Agent;
import dev.wssidecar.client.SidecarClient;
import dev.wssidecar.client.errors.SidecarException;
import java.io.IOException;
import java.time.Duration;

/** Runs the demo agent until SIGTERM, SIGINT, or the end of whoever holds the other end of its standard input. */
public final class Main {
  private static final int EXIT_UNAVAILABLE = 69;
  private static final int EXIT_CONFIG = 78;
  private static final Duration ATTACH_TIMEOUT = Duration.ofSeconds(15);

  private Main() {}

  /**
   * Serves.
   *
   * @param arguments none
   * @throws InterruptedException when its thread is interrupted
   */
  public static void main(String[] arguments) throws InterruptedException {
    System.exit(serve());
  }

  private static int serve() throws InterruptedException {
    try (SidecarClient client = SidecarClient.create();
        Agent agent = new DemoAgent(client).agent()) {
      Runtime.getRuntime().addShutdownHook(new Thread(agent::stop));
      agent.start().waitAttached(ATTACH_TIMEOUT);
      System.out.println("demo agent attached");
      awaitParent();
      return 0;
    } catch (SidecarException refusal) {
      String why = refusal.reason().isEmpty() ? refusal.code().name() : refusal.reason();
      System.err.println("demo agent: not attached: " + why);
      return EXIT_UNAVAILABLE;
    } catch (IllegalArgumentException problem) {
      System.err.println("demo agent: " + problem.getMessage());
      return EXIT_CONFIG;
    }
  }

  /** A pipe as standard input is held by a parent: when it closes, the parent has gone. A terminal means nothing. */
  private static void awaitParent() throws InterruptedException {
    boolean held = System.console() == null;
    try {
      while (held && System.in.read() != -1) {
        // What a parent says means nothing: only its end does.
      }
    } catch (IOException gone) {
      return;
    }
    if (!held) {
      Thread.currentThread().join(); // until a signal ends the process
    }
  }
}
